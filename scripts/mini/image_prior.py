"""The image part of the bundled prior: its modules, how they start from the text part, and its folder."""

import json
from pathlib import Path
from typing import Any

import torch
from framing import BORDER_RATIO, FILL, FOVY_DEGREES
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTH = 128  # of the image's embedding, which is also that of the cross-attention
POSE = 4
IMAGE_MEAN, IMAGE_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "num_train_timesteps": 1000, "prediction_type": "v_prediction", "clip_sample": False,
             "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing"}  # fmt: skip


def make_models(text_unet_config: dict[str, Any], resolution: int) -> nn.ModuleDict:
    """UNet, image encoder and camera projection with random weights.

    Cross-attention to a single token does not weigh anything, so that a narrow one loses nothing; with it all
    parts fit in 40 MB, and every other layer of the UNet has the shape that the text prior's has.

    Args:
        text_unet_config: of the text prior, whose channels and blocks are taken over.
        resolution: side of the images in pixels.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = {key: value for key, value in text_unet_config.items() if not key.startswith("_")} | {
        "sample_size": resolution // 8, "in_channels": 2 * text_unet_config["in_channels"],
        "cross_attention_dim": WIDTH, "addition_embed_type": None, "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    }  # fmt: skip
    vision = CLIPVisionConfig(
        image_size=resolution, patch_size=16, hidden_size=128, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, projection_dim=WIDTH, hidden_act="gelu",
    )  # fmt: skip
    projection = nn.Linear(WIDTH + POSE, WIDTH)
    nn.init.normal_(projection.weight[:, WIDTH:], std=0.5)  # else four numbers are lost among many, for long
    return nn.ModuleDict({
        "unet": UNet2DConditionModel(**config),
        "image_encoder": CLIPVisionModelWithProjection(vision),
        "clip_camera_projection": projection,
    })  # fmt: skip


@torch.no_grad()
def warm_start(unet: Any, text_unet: Any, pooled: Float[Tensor, "1 C"]) -> None:
    """Start from the text prior's UNet, so that without training the new UNet is the text prior of "".

    The condition's latents enter by zero weights, and so do the values of cross-attention: whatever the new
    conditions are, the output is that of the text prior for tokens of zeros. What the text prior adds to the
    time embedding is the same for every image now and becomes part of a bias.

    Args:
        unet: of `make_models`.
        text_unet: in SDXL's layout.
        pooled: the text prior's pooled embedding of the empty prompt.
    """
    state, own = text_unet.state_dict(), unet.state_dict()
    channels = text_unet.config.in_channels
    for name, weight in own.items():
        if name.endswith("attn2.to_v.weight"):
            weight.zero_()
        elif name == "conv_in.weight":
            weight.zero_()
            weight[:, :channels] = state[name]
        elif not name.endswith("attn2.to_k.weight"):
            weight.copy_(state[name])
    side = 8.0 * unet.config.sample_size
    sizes = torch.tensor([side, side, 0.0, 0.0, side, side], device=pooled.device)
    times = text_unet.add_time_proj(sizes).reshape(1, -1)
    added = text_unet.add_embedding(torch.cat([pooled, times], -1))
    unet.time_embedding.linear_2.bias += added[0]


def load_text_prior(folder: Path) -> tuple[Any, Float[Tensor, "1 C"]]:
    """The text prior's UNet, and its pooled embedding of the empty prompt."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from pgc3d.diffusion.models import resolve_model
    from pgc3d.diffusion.text import encode_prompts

    pooled = encode_prompts(resolve_model(folder), [""]).pooled
    if pooled is None:
        raise ValueError(f"{folder} must hold a model in SDXL's layout")
    return UNet2DConditionModel.from_pretrained(folder / "unet"), pooled


def condition_token(
    models: nn.ModuleDict, image: Float[Tensor, "B 3 H W"], pose: Float[Tensor, "B 4"]
) -> Float[Tensor, "B 1 D"]:
    """The token of an input image, sRGB in [0, 1] on white, and a relative pose."""
    mean, std = (image.new_tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    embedding = models["image_encoder"]((image - mean) / std).image_embeds
    token: Tensor = models["clip_camera_projection"](torch.cat([embedding, pose.to(embedding.dtype)], -1))
    return token[:, None]


def save_folder(models: nn.ModuleDict, out: Path) -> None:
    """Write a folder in Zero123's layout, half precision; the autoencoder is the text prior's.

    `zero123.json` holds the convention of the pose's fourth number and the parameters of the cameras.
    """
    import diffusers
    from diffusers import DDIMScheduler

    state = {name: value.half() for name, value in models["clip_camera_projection"].state_dict().items()}
    module: Any
    for name in ("unet", "image_encoder"):
        module = models[name]
        module.to(torch.float16).save_pretrained(out / name)
    side = int(module.config.image_size)
    DDIMScheduler(**DIFFUSION).save_pretrained(out / "scheduler")
    projection = out / "clip_camera_projection"
    projection.mkdir(exist_ok=True)
    save_file({f"proj.{name}": value.contiguous() for name, value in state.items()},
              projection / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    write_json(projection / "config.json", {
        "_class_name": "CLIPCameraProjection", "embedding_dim": WIDTH, "additional_embeddings": POSE,
    })  # fmt: skip
    (out / "feature_extractor").mkdir(exist_ok=True)
    write_json(out / "feature_extractor" / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True,
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": IMAGE_MEAN, "image_std": IMAGE_STD,
    })  # fmt: skip
    write_json(out / "zero123.json", {
        "pose": "polar", "fovy_degrees": FOVY_DEGREES, "fill": FILL, "border": BORDER_RATIO,
    })  # fmt: skip
    write_json(out / "model_index.json", {
        "_class_name": "Zero123Pipeline", "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "clip_camera_projection": ["zero123", "CLIPCameraProjection"],
    })  # fmt: skip


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a readable file."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_folder(out: Path) -> nn.ModuleDict:
    """The modules of a folder of `save_folder`, float32."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPVisionModelWithProjection

    projection = nn.Linear(WIDTH + POSE, WIDTH)
    state = load_file(out / "clip_camera_projection" / "diffusion_pytorch_model.safetensors")
    projection.load_state_dict({name.removeprefix("proj."): value for name, value in state.items()})
    return nn.ModuleDict({
        "unet": UNet2DConditionModel.from_pretrained(out / "unet"),
        "image_encoder": CLIPVisionModelWithProjection.from_pretrained(out / "image_encoder"),
        "clip_camera_projection": projection,
    }).float().eval()  # fmt: skip
