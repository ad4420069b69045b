"""Write a Zero123-layout checkpoint with random weights.

As `make_random_sdxl.py`, for the image-conditioned model: `python scripts/make_random_zero123.py FOLDER`
writes the full size (2.4 GB in float16), with `--tiny` a miniature for 64 px that the tests also use.
"""

from pathlib import Path
from typing import Any

import torch
from make_random_sdxl import SCHEDULER, command_line, vae_config, write_json, write_modules

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_DEVIATION = [0.26862954, 0.26130258, 0.27577711]


def write_random_zero123(
    folder: Path, *, full_size: bool, device: torch.device | str = "cpu", seed: int = 0
) -> None:
    """Write a checkpoint with the real classes; float16 at full size, float32 in miniature.

    Args:
        folder: created where it does not exist.
        full_size: the sizes of Zero123-XL, or two levels of 32 and 64 channels.
        device: where the random numbers are drawn.
        seed: of the weights.
    """
    write_modules(folder, _parts(full_size=full_size), half=full_size, device=device, seed=seed)
    write_projection(folder / "clip_camera_projection", width=768 if full_size else 32, half=full_size)
    side = vision_config(full_size=full_size)["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_DEVIATION,
    }
    write_json(folder / "feature_extractor" / "preprocessor_config.json", processor)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER | {"_class_name": "DDIMScheduler"})
    write_json(folder / "zero123.json", {"pose": "radius"})
    index = {
        "_class_name": "Zero123Pipeline",
        "clip_camera_projection": ["zero123", "CLIPCameraProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)


def write_projection(folder: Path, *, width: int, half: bool, seed: int = 0) -> None:
    """The layer of the image's embedding and the pose, whose weights are larger, so that it has an effect."""
    from safetensors.torch import save_file

    write_json(
        folder / "config.json",
        {"_class_name": "CLIPCameraProjection", "embedding_dim": width, "additional_embeddings": 4},
    )
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, width + 4, generator=generator) * (width + 4) ** -0.5
    weight[:, width:] *= width**0.5
    dtype, suffix = (torch.float16, ".fp16") if half else (torch.float32, "")
    tensors = {"proj.weight": weight.to(dtype), "proj.bias": torch.zeros(width, dtype=dtype)}
    save_file(tensors, folder / f"diffusion_pytorch_model{suffix}.safetensors")


def _parts(*, full_size: bool) -> list[tuple[str, Any]]:
    """The modules on the meta device, which takes no time and no memory."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    vae = vae_config(full_size=full_size)
    vae |= {"scaling_factor": 0.18215, "sample_size": 256 if full_size else 64}
    with torch.device("meta"):
        return [
            ("unet", UNet2DConditionModel(**unet_config(full_size=full_size))),
            ("vae", AutoencoderKL(**vae)),
            (
                "image_encoder",
                CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_config(full_size=full_size))),
            ),
        ]


def unet_config(*, full_size: bool) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel: SD 1.5 with the condition's latents beside the noisy ones."""
    if full_size:
        return {
            "sample_size": 32,
            "in_channels": 8,
            "block_out_channels": (320, 640, 1280, 1280),
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        }
    return {
        "sample_size": 8,
        "in_channels": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
    }


def vision_config(*, full_size: bool) -> dict[str, Any]:
    """Arguments of CLIPVisionConfig: those of ViT-L/14, or a miniature."""
    if full_size:
        return {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": 224,
            "projection_dim": 768,
        }
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 8,
        "image_size": 32,
        "projection_dim": 32,
    }


if __name__ == "__main__":
    command_line("Zero123", write_random_zero123)
