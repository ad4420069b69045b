"""Settings of the input image; models in Zero123's layout may bring their own."""

from dataclasses import dataclass

from pgc3d.ranges import check, number


@dataclass(frozen=True)
class PhotoConfig:
    """How an input image is prepared."""

    border: float = number(0.2, 0.0, 0.8)  # fraction of the square beside the object, both ends together
    matting: bool = True  # images without alpha: by rembg; False: their background must be one plain colour
    size: int = number(512, 64, 2048, unit="pixels")  # of the prepared square

    def __post_init__(self) -> None:
        check(self)
