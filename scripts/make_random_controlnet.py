"""Write a ControlNet with random weights for a checkpoint that another of these scripts wrote.

    python scripts/make_random_sdxl.py MODELS/sdxl
    python scripts/make_random_controlnet.py MODELS/sdxl-depth-small MODELS/sdxl

The network has the size of the checkpoint's UNet, in float16 at full size and in float32 with `--tiny`, and
unlike a new one of the library it adds something.
"""

import argparse
from pathlib import Path

import torch
from make_random_sdxl import randomize

from pgc3d.diffusion.files import read_json

WIDTHS = (16, 32, 96, 256)  # of the condition's layers; each but the first halves the sides
TINY_WIDTHS = (8, 8, 8, 8)
GAIN = 4.0  # of the condition's layers, so that the random rest does not drown it


def write_random_controlnet(
    folder: Path, model: Path, *, full_size: bool, device: torch.device | str = "cpu", seed: int = 0
) -> Path:
    """Write a ControlNet for the UNet of a checkpoint.

    Args:
        folder: created where it does not exist.
        model: the checkpoint's folder.
        full_size: write float16, and the usual widths of the condition's layers.
        device: where the random numbers are drawn.
        seed: of the weights.

    Returns:
        `folder`.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    widths = WIDTHS if full_size else TINY_WIDTHS
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_json(model / "unet" / "config.json"))
        network = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=widths, load_weights_from_unet=False
        )
    dtype = torch.float16 if full_size else torch.float32
    torch.nn.Module.to(network, dtype=dtype)  # the library's own `to` warns
    network.to_empty(device=device)
    randomize(network, torch.Generator(device).manual_seed(seed))
    with torch.no_grad():
        for parameter in network.controlnet_cond_embedding.parameters():
            parameter.mul_(GAIN)
    network.save_pretrained(folder, max_shard_size="50GB", **({"variant": "fp16"} if full_size else {}))
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("--tiny", action="store_true", help="for a miniature")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    write_random_controlnet(
        arguments.folder, arguments.model, full_size=not arguments.tiny, device=device, seed=arguments.seed
    )
    size = sum(file.stat().st_size for file in arguments.folder.iterdir())
    print(f"{arguments.folder}: {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
