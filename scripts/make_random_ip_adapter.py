"""Write an IP-Adapter with random weights for a checkpoint in SDXL's or SD's layout, with its image encoder.

The files have the names and tensors of the authors' repository. At full size they are those of the plain
adapters with OpenCLIP's ViT-H: `python scripts/make_random_ip_adapter.py FOLDER MODEL`, where MODEL is a
folder of make_random_sdxl.py or make_random_sd.py; then `--style IMAGE --style-adapter FOLDER`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from make_random_sdxl import write_modules
from safetensors.torch import save_file
from torch import Tensor

from pgc3d.diffusion.files import read_json
from pgc3d.diffusion.style import ENCODER, FILES, TOKENS
from pgc3d.diffusion.style_attention import KEYS, VALUES, layer_numbers, text_attentions

VIT_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 48,
    "hidden_act": "gelu",
}
PLUS_TOKENS = 16


def write_random_adapter(
    folder: Path,
    model: Path,
    *,
    full_size: bool,
    plus: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Path:
    """Write an adapter for a model, and its encoder beside it; the adapter's file.

    Args:
        folder: created where it does not exist.
        model: a checkpoint in diffusers' layout.
        full_size: float16 and the sizes of ViT-H, else float32 and a miniature.
        plus: of the kind that reads the patches of the image.
        device: where the random numbers are drawn.
        seed: of the weights.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = read_json(model / "unet" / "config.json")
    path = folder / FILES["sdxl" if unet.get("addition_embed_type") else "sd"][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = VIT_H if full_size else TINY
    write_modules(path.parent, [(ENCODER, _encoder(encoder))], half=full_size, device=device, seed=seed)
    if full_size:  # the authors' file has the name of full precision
        (path.parent / ENCODER / "model.fp16.safetensors").rename(path.parent / ENCODER / "model.safetensors")
    with torch.device("meta"):
        attentions = text_attentions(UNet2DConditionModel.from_config(unet))
    shapes = _plus(encoder, unet) if plus else _plain(encoder, unet)
    for number, attention in zip(layer_numbers(len(attentions)), attentions, strict=True):
        shapes |= {key.format(number): tuple(attention.to_k.weight.shape) for key in (KEYS, VALUES)}
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.float16 if full_size else torch.float32
    save_file({name: _draw(shape, generator, dtype) for name, shape in shapes.items()}, path)
    return path


def _encoder(sizes: dict[str, Any]) -> Any:
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    with torch.device("meta"):
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))


def _plain(encoder: dict[str, Any], unet: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width = unet["cross_attention_dim"]
    return {
        "image_proj.proj.weight": (TOKENS * width, encoder["projection_dim"]),
        "image_proj.proj.bias": (TOKENS * width,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }


def _plus(encoder: dict[str, Any], unet: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """A resampler of four layers with heads of 64 numbers, the library's."""
    inner, width = (768 if encoder == VIT_H else 64), unet["cross_attention_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "image_proj.latents": (1, PLUS_TOKENS, inner),
        "image_proj.proj_in.weight": (inner, encoder["hidden_size"]),
        "image_proj.proj_in.bias": (inner,),
        "image_proj.proj_out.weight": (width, inner),
        "image_proj.proj_out.bias": (width,),
        "image_proj.norm_out.weight": (width,),
        "image_proj.norm_out.bias": (width,),
    }
    for layer in range(4):
        attention, feed = f"image_proj.layers.{layer}.0", f"image_proj.layers.{layer}.1"
        for norm in (f"{attention}.norm1", f"{attention}.norm2", f"{feed}.0"):
            shapes |= {f"{norm}.weight": (inner,), f"{norm}.bias": (inner,)}
        shapes |= {
            f"{attention}.to_q.weight": (inner, inner),
            f"{attention}.to_kv.weight": (2 * inner, inner),
            f"{attention}.to_out.weight": (inner, inner),
            f"{feed}.1.weight": (4 * inner, inner),
            f"{feed}.3.weight": (inner, 4 * inner),
        }
    return shapes


def _draw(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Random weights that keep the size of what passes through; norms of about 1, biases of about 0."""
    values = torch.randn(shape, generator=generator, device=generator.device)
    scale = 0.05 if len(shape) == 1 else shape[-1] ** -0.5
    return (scale * values + (1.0 if len(shape) == 1 else 0.0)).to(dtype).cpu()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write an IP-Adapter with random weights")
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path, help="folder of the checkpoint that it is for")
    parser.add_argument("--tiny", action="store_true", help="a miniature for a miniature")
    parser.add_argument("--plus", action="store_true", help="the kind that reads the image's patches")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        write_random_adapter(
            arguments.folder,
            arguments.model,
            full_size=not arguments.tiny,
            plus=arguments.plus,
            device="cuda" if torch.cuda.is_available() else "cpu",
            seed=arguments.seed,
        )
    )
