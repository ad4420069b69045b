"""Settings of the mesh file that is written; cheap to import."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pgc3d.choices import AXES, Format, Origin, Unit
from pgc3d.ranges import check, number

KEEP = "keep"


@dataclass(frozen=True)
class PlacingConfig:
    """How an exported mesh stands in its file; the defaults change nothing.

    The mesh is turned, then scaled, then moved. `height` is its extent along `up`, in `unit`. Formats that
    state their own axes and unit (glTF and USDZ: y up, metres) get the height in metres; in all others
    the numbers of the file are in `unit`.
    """

    height: float = number(0.0, 0.0, 1e6, also={0: "the mesh's own size"})  # of the mesh in `unit`
    up: str = KEEP  # +x -x +y -y +z -z, or keep
    origin: Origin = "keep"  # where the bounding box has (0, 0, 0)
    unit: Unit = "m"  # of `height`, and of the numbers of most files

    def __post_init__(self) -> None:
        check(self)
        if self.up not in (KEEP, *AXES):
            raise ValueError(f"up must be one of {', '.join((KEEP, *AXES))}, got {self.up!r}")
        if self.unit != "m" and not self.height:
            raise ValueError(f"unit must go with a height, got {self.unit} and no height; add --height")

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that differ from the defaults; empty where nothing is changed."""
        own, usual = asdict(self), asdict(PlacingConfig())
        return {key: value for key, value in own.items() if value != usual[key]}


@dataclass(frozen=True)
class ExportConfig:
    """The mesh file that is written at the end."""

    format: Format = "glb"  # of the file, see the option --format
    texture_size: int = number(1024, 64, 8192, unit="pixels")  # side of the images that are written
    faces: int = number(20_000, 4, 10**9, also={0: "all of them"})  # decimate to this many
    placing: PlacingConfig = field(default_factory=PlacingConfig)

    def __post_init__(self) -> None:
        check(self)
