"""Write an SDXL-layout checkpoint with random weights.

Time and memory do not depend on the weights, so that the real loader and the real step can be measured
without a download: `python scripts/make_random_sdxl.py FOLDER` writes the full size (about 7 GB in float16),
with `--tiny` a miniature for 64 px that the tests also use.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

START, END = "<|startoftext|>", "<|endoftext|>"
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


def write_random_sdxl(
    folder: Path, *, full_size: bool, device: torch.device | str = "cpu", seed: int = 0
) -> None:
    """Write a checkpoint with the real classes; float16 at full size, float32 in miniature.

    Args:
        folder: created where it does not exist.
        full_size: SDXL base's sizes, or two levels of 32 and 64 channels.
        device: where the random numbers are drawn; a GPU is much faster at full size.
        seed: of the weights.
    """
    write_modules(folder, _parts(full_size=full_size), half=full_size, device=device, seed=seed)
    for suffix in ("", "_2"):
        write_tokenizer(folder / f"tokenizer{suffix}")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)


def write_modules(
    folder: Path,
    modules: Iterable[tuple[str, Any]],
    *,
    half: bool,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> None:
    """Give modules on the meta device random weights and save them under their names, one after the other."""
    generator = torch.Generator(device).manual_seed(seed)
    for part, module in modules:
        # the libraries' own `to` warns
        torch.nn.Module.to(module, dtype=torch.float16 if half else torch.float32)
        module.to_empty(device=device)
        randomize(module, generator)
        variant = {"variant": "fp16"} if half else {}
        module.save_pretrained(folder / part, max_shard_size="50GB", safe_serialization=True, **variant)
        module.to("meta")  # frees it


def randomize(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of what passes through, so that half precision stays finite."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)  # norms and biases
            else:
                parameter.normal_(0.0, 0.7 * parameter[0].numel() ** -0.5, generator=generator)


def write_tokenizer(folder: Path) -> None:
    """CLIP's byte-level tokenizer with no merges: one token per byte, 77 tokens long."""
    symbols = _byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), START, END]
    write_json(folder / "vocab.json", {word: index for index, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def _byte_symbols() -> list[str]:
    """One printable character per byte, as byte-level BPE spells them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [256 + index for index in range(256 - len(printable))]
    return [chr(code) for code in printable] + [chr(code) for code in shifted]


def _parts(*, full_size: bool) -> list[tuple[str, Any]]:
    """The modules on the meta device, which takes no time and no memory."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        return [
            ("unet", UNet2DConditionModel(**unet_config(full_size=full_size))),
            ("vae", AutoencoderKL(**vae_config(full_size=full_size))),
            ("text_encoder", CLIPTextModel(CLIPTextConfig(**text_config(full_size=full_size, second=False)))),
            (
                "text_encoder_2",
                CLIPTextModelWithProjection(CLIPTextConfig(**text_config(full_size=full_size, second=True))),
            ),
        ]


def unet_config(*, full_size: bool) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel; six Fourier features stand beside the pooled embedding."""
    shared = {
        "addition_embed_type": "text_time",
        "use_linear_projection": True,
        "layers_per_block": 2 if full_size else 1,
    }
    if full_size:
        return {
            **shared,
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        }
    return {
        **shared,
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "attention_head_dim": (2, 4),
        "norm_num_groups": 8,
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    }


def sd_unet_config(*, full_size: bool) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel in the layout of Stable Diffusion 1.5."""
    if full_size:
        return {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        }
    return unet_config(full_size=False) | {
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
        "cross_attention_dim": 32,
    }


def vae_config(*, full_size: bool) -> dict[str, Any]:
    """Arguments of AutoencoderKL; factor 8, and safe in float16 as the published replacement VAE."""
    channels = (128, 256, 512, 512) if full_size else (16, 16, 16, 16)
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2 if full_size else 1,
        "latent_channels": 4,
        "norm_num_groups": 32 if full_size else 8,
        "sample_size": 1024 if full_size else 64,
        "scaling_factor": 0.13025,
        "force_upcast": False,
    }


def text_config(*, full_size: bool, second: bool) -> dict[str, Any]:
    """Arguments of CLIPTextConfig; `write_tokenizer`'s vocabulary, padded to CLIP's at full size."""
    ids = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513, "max_position_embeddings": 77}
    if not full_size:
        small = {"vocab_size": 514, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        return {**ids, **small, "num_hidden_layers": 3, "projection_dim": 32}
    if second:
        large = {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 20,
            "hidden_act": "gelu",
        }
        return {**ids, **large, "vocab_size": 49408, "num_hidden_layers": 32, "projection_dim": 1280}
    base = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    }
    return {**ids, **base, "vocab_size": 49408, "num_hidden_layers": 12, "projection_dim": 768}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def command_line(layout: str, write: Callable[..., None]) -> None:
    """The command line of a script that writes a checkpoint.

    Args:
        layout: of the checkpoint, for the help text.
        write: as `write_random_sdxl`.
    """
    parser = argparse.ArgumentParser(description=f"Write a checkpoint with random weights, layout {layout}")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a miniature for 64 px")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write(arguments.folder, full_size=not arguments.tiny, device=device, seed=arguments.seed)
    size = sum(file.stat().st_size for file in arguments.folder.rglob("*") if file.is_file())
    print(f"{arguments.folder}: {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    command_line("SDXL", write_random_sdxl)
