"""Base colour, roughness and metallic under environment lights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch

from pgc3d.context import LightLoader
from pgc3d.ranges import MAX_WEIGHT, PATH, check, number, span
from pgc3d.rendering.environment import filtered
from pgc3d.rendering.lighting import Lighting
from pgc3d.rendering.lights import LIGHTS, balanced
from pgc3d.representation.channels import PbrChannels
from pgc3d.requirements import Requirements

MAX_LIGHTS = 16
LIGHT_PATHS = {**PATH, "names": tuple(LIGHTS)}  # files, apart from these names
BYTES = 700  # for a rendered pixel: directions, look-ups and their weights, float32


@dataclass(frozen=True)
class PbrConfig:
    """A metallic-roughness material; each view has one of the lights, turned about y at random.

    Fantasia3D (Chen et al. 2023) optimises such a material, under one light; lights that vary keep their
    reflections out of the base colour (as in FlashTex, Deng et al. 2024).
    """

    kind: Literal["pbr"] = "pbr"
    # Names, or images in latitude and longitude with +z in the middle; the first one is that of evaluation.
    lights: tuple[str, ...] = field(
        default=("studio", "softbox", "sun", "sunset", "overcast"), metadata=LIGHT_PATHS
    )
    rotate: bool = True  # turn the light of each view by a random angle
    brightness: float = number(0.7, 0.01, 100.0)  # of a white diffuse surface, on average, in linear light
    base_color: tuple[float, float] = span((0.03, 0.97), 0.0, 1.0, unit="in sRGB")  # bounds of the material
    roughness: tuple[float, float] = span((0.08, 1.0), 0.0, 1.0)  # bounds of the material
    metallic: tuple[float, float] = span((0.0, 1.0), 0.0, 1.0)  # bounds of the material
    bump: bool = False  # normals that vary within a face; for meshes with texture coordinates
    bump_limit: float = number(0.5, 0.0, 2.0, above=True)  # largest slope along u and v
    smoothness: float = number(0.0, 0.0, MAX_WEIGHT)  # weight of differences of near base colours

    lit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self)
        if not 1 <= len(self.lights) <= MAX_LIGHTS:
            raise ValueError(f"lights must name 1 to {MAX_LIGHTS} lights, got {len(self.lights)}")
        for name in self.lights:
            if name not in LIGHTS and not Path(name).suffix:
                raise ValueError(
                    f"lights must be of {', '.join(LIGHTS)} or the files of images, got {name!r}"
                )
        for name in ("base_color", "roughness", "metallic"):
            low, high = getattr(self, name)
            if low == high:
                raise ValueError(f"{name} must be [low, high] with low < high, got {[low, high]}")

    def requires(self) -> Requirements:
        """The files of the lights."""
        files = {("representation.material.lights", name) for name in self.lights if name not in LIGHTS}
        return Requirements(files=frozenset(files))

    def channels(self, roughness: float, metallic: float) -> PbrChannels:
        """What a texture stores; roughness and metallic are those that it starts with."""
        return PbrChannels(
            self.base_color, self.roughness, self.metallic, self.bump_limit if self.bump else 0.0
        )

    def lighting(self, load: LightLoader, device: torch.device | str) -> Lighting:
        """The filtered lights on a device.

        Args:
            load: the linear radiance of a light's file.
            device: of the renderer.

        Raises:
            InputError: a light's file is no image, or has no light in a channel.
        """
        images = [LIGHTS[name].radiance() if name in LIGHTS else load(Path(name)) for name in self.lights]
        lights = filtered(torch.stack([balanced(image, self.brightness) for image in images]))
        return Lighting.of(lights, device, rotate=self.rotate)

    def render_bytes(self) -> int:
        """Bytes beside those of the renderer itself."""
        return BYTES
