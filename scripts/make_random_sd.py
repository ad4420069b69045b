"""Write a checkpoint in the layout of Stable Diffusion 1.5 with random weights.

As `make_random_sdxl.py`: `python scripts/make_random_sd.py FOLDER` writes the full size (2.1 GB in float16),
with `--tiny` a miniature for 64 px that the tests also use.
"""

from pathlib import Path
from typing import Any

import torch
from make_random_sdxl import (
    SCHEDULER,
    command_line,
    sd_unet_config,
    text_config,
    vae_config,
    write_json,
    write_modules,
    write_tokenizer,
)


def write_random_sd(
    folder: Path, *, full_size: bool, device: torch.device | str = "cpu", seed: int = 0
) -> None:
    """Write a checkpoint with the real classes; float16 at full size, float32 in miniature.

    Args:
        folder: created where it does not exist.
        full_size: the sizes of Stable Diffusion 1.5, or two levels of 32 and 64 channels.
        device: where the random numbers are drawn.
        seed: of the weights.
    """
    write_modules(folder, _parts(full_size=full_size), half=full_size, device=device, seed=seed)
    write_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)


def _parts(*, full_size: bool) -> list[tuple[str, Any]]:
    """The modules on the meta device, which takes no time and no memory."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    vae = vae_config(full_size=full_size)
    vae |= {"scaling_factor": 0.18215, "sample_size": 512 if full_size else 64}
    with torch.device("meta"):
        return [
            ("unet", UNet2DConditionModel(**sd_unet_config(full_size=full_size))),
            ("vae", AutoencoderKL(**vae)),
            ("text_encoder", CLIPTextModel(CLIPTextConfig(**text_config(full_size=full_size, second=False)))),
        ]


if __name__ == "__main__":
    command_line("SD", write_random_sd)
