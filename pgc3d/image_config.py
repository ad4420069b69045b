"""Settings of the input image; the folder of a model in Zero123's layout may override them."""

from dataclasses import dataclass

from pgc3d.ranges import check, number


@dataclass(frozen=True)
class InputImageConfig:
    """How an input image is cut out and framed."""

    # Fraction of the prepared square's side that the object leaves free, both ends together.
    border: float = number(0.2, 0.0, 0.8)
    matting: bool = True  # of images without alpha, by rembg; else their background must be one plain colour
    size: int = number(512, 64, 2048, unit="pixels")  # of the prepared square

    def __post_init__(self) -> None:
        check(self)
