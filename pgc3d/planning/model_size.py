"""The sizes of a diffusion model on the disk that its memory and time depend on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgc3d.diffusion.files import WEIGHTS, ModelFolder, read_json, weight_files
from pgc3d.diffusion.single_file import count_unet


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a latent diffusion model that the estimate needs."""

    unet_parameters: int
    unet_channels: int  # of its first layer
    vae_channels: tuple[int, ...]  # of its levels
    vae_layers: int
    resolution: int  # side in pixels of the images that it was trained on
    controls: Mapping[str, int] = field(default_factory=dict)  # parameters of the ControlNets beside it
    style: int = 0  # parameters of a style adapter's layers in the UNet

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel along a side."""
        return int(2 ** (len(self.vae_channels) - 1))


def read_size(folder: ModelFolder, controls: Mapping[str, ModelFolder], style: int = 0) -> ModelSize:
    """The sizes of a model and its ControlNets, from their configs and the headers of their weights.

    Args:
        folder: of the model.
        controls: the folders of its ControlNets, by name.
        style: parameters of its style adapter.
    """
    parts = (folder.path / "unet", folder.vae or folder.path / "vae")
    unet, vae = (read_json(part / "config.json") for part in parts)
    channels = tuple(vae["block_out_channels"])
    return ModelSize(
        unet_parameters=count_unet(folder.file) if folder.file else _parameters_of(folder.path / "unet"),
        unet_channels=int(unet["block_out_channels"][0]),
        vae_channels=channels,
        vae_layers=int(vae.get("layers_per_block", 1)),
        resolution=int(unet["sample_size"]) * 2 ** (len(channels) - 1),
        controls={name: _parameters_of(control.path) for name, control in controls.items()},
        style=style,
    )


def _parameters_of(network: Path) -> int:
    """Number of parameters of a UNet or a ControlNet; their weights have the same file names."""
    return count_parameters(weight_files(network, WEIGHTS["unet"], prefer_half=True))


def count_parameters(files: Sequence[Path]) -> int:
    """Number of tensor entries in some safetensors files, from their headers."""
    from safetensors import safe_open

    total = 0
    for file in files:
        with safe_open(file, framework="pt") as handle:
            total += sum(math.prod(handle.get_slice(name).get_shape()) for name in handle.keys())  # noqa: SIM118
    return total
