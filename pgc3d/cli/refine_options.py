"""The options of `texture` that keep, mask or refine the texture that a mesh has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pgc3d.errors import InputError

RefineOption = Annotated[
    bool, typer.Option("--refine", help="Start from the file's own texture and change it within bounds.")
]
InitOption = Annotated[
    Path | None,
    typer.Option(
        metavar="IMAGE|sync",
        help="Refine this texture image in place of the file's own; sync: start from views that the model "
        "samples together, by the depth of the mesh.",
    ),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, metavar="0..1", help="Of --refine: 0 changes nothing, 1 is as free as without it."
    ),
]
MaskOption = Annotated[
    Path | None,
    typer.Option(
        metavar="IMAGE", help="Texture image, white where it may change; other texels stay as they are."
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Texture this node or material only, as 'Wheel*'; repeatable."),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Keep the look of this node or material; repeatable."),
]

SYNC = Path("sync")  # a file of this name is ./sync
T_MAX = (0.98, 0.4)  # first and last largest timestep at full strength, as a fraction
T_LEAST = 0.04  # above the smallest timestep of all presets


@dataclass(frozen=True)
class RefineOptions:
    """The values of these options."""

    refine: bool = False
    init: Path | None = None  # a texture image, or `SYNC`
    strength: float | None = None
    mask: Path | None = None
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sync and (self.refine or self.mask is not None):
            raise InputError(
                "--init sync must go without --refine and --mask, which start from a texture, got both; "
                "remove one"
            )
        if self.strength is not None and not (self.starts or self.sync):
            raise InputError(
                f"--strength must go with --refine or --init, got {self.strength} without; add --refine"
            )

    @property
    def starts(self) -> bool:
        """Whether colours start from a texture."""
        return self.refine or self.texture is not None

    @property
    def sync(self) -> bool:
        """Whether the option chooses views that are sampled together."""
        return self.init == SYNC

    @property
    def initial_views(self) -> bool | None:
        """Whether colours start from views that are sampled together; None leaves it to the quality."""
        if self.sync:
            return True
        return False if self.starts or self.mask is not None else None

    @property
    def texture(self) -> Path | None:
        """The texture image that colours start from in place of the file's own."""
        return None if self.sync else self.init

    def source(self, texture_size: int | None) -> dict[str, Any]:
        """The settings of the representation's source; `texture_size` is that of the result, if given."""
        if not self.starts and self.mask is None and not self.only and not self.keep:
            return {}
        use = "start" if self.starts else "keep"
        return {"use": use, "strength": self.strength, "size": texture_size}

    def guidance(self) -> dict[str, Any]:
        """The settings of the guidances."""
        return {} if self.strength is None else {"t_max": timesteps(self.strength)}


def timesteps(strength: float) -> list[float]:
    """The schedule of the largest timestep t_max for a strength s: linear from 0.98 s^1.3 to 0.4 s^3.

    At s = 1 it is from 0.98 to 0.4, at 0.5 from 0.4 to 0.05.
    """
    first, last = T_MAX[0] * strength**1.3, T_MAX[1] * strength**3
    return [0.0, max(first, T_LEAST), 1.0, max(last, T_LEAST)]
