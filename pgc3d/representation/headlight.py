"""A base colour under a light that is fixed to the camera."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from pgc3d.context import LightLoader
from pgc3d.rendering.lighting import Lighting
from pgc3d.representation.channels import ColorChannels
from pgc3d.requirements import Requirements


@dataclass(frozen=True)
class HeadlightConfig:
    """Only the base colour is optimised; roughness and metallic are constants of the representation."""

    kind: Literal["headlight"] = "headlight"

    bump: ClassVar[bool] = False
    lit: ClassVar[bool] = False
    smoothness: ClassVar[float] = 0.0

    def requires(self) -> Requirements:
        """Nothing."""
        return Requirements()

    def channels(self, roughness: float, metallic: float) -> ColorChannels:
        """The base colour, with constants of the representation."""
        return ColorChannels(roughness, metallic)

    def lighting(self, load: LightLoader, device: torch.device | str) -> Lighting | None:
        """None: the renderer's own shading."""
        return None

    def render_bytes(self) -> int:
        """Bytes beside those of the renderer itself."""
        return 0
