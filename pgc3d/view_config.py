"""The settings of the input image's camera; cheap to import."""

import math
from dataclasses import dataclass

from pgc3d.ranges import check, number

FAR = 100.0  # distance of the far plane of all cameras
MAX_FILL = 10.0  # the camera nearly touches the unit sphere


@dataclass(frozen=True)
class ViewConfig:
    """The camera of the input image, as far as it is known; its azimuth is 0."""

    elevation_degrees: float = number(0.0, -89.0, 89.0, unit="degrees")  # positive above the object
    # Vertical field of view.
    fovy_degrees: float = number(40.0, 0.0, 150.0, unit="degrees", above=True, below=True)
    fill: float = number(1.0, 0.0, MAX_FILL, above=True)  # as in `OrbitConfig`

    def __post_init__(self) -> None:
        check(self)
        check_distance(self.fovy_degrees, self.fill)


def check_distance(fovy_degrees: float, fill: float) -> None:
    """Raise ValueError where the unit sphere would lie beyond the far plane; see `cameras.fill_distance`."""
    distance = 1.0 / math.sin(math.atan(fill * math.tan(math.radians(fovy_degrees) / 2)))
    if distance + 1.0 > FAR:
        raise ValueError(
            f"cameras must stand within {FAR - 1.0:g} of the origin, got {distance:.1f} for fovy_degrees "
            f"{fovy_degrees:g} and fill {fill:g}; raise one of them"
        )
