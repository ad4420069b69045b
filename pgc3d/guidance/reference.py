"""The reference view: from the camera of the input picture, the asset should look as the picture does."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from pgc3d.diffusion.latent import resize
from pgc3d.types import Cameras, GuidanceOutput, Rendering


@dataclass(frozen=True)
class ReferenceConfig:
    """Weights of squared differences, summed over the pixels."""

    kind: Literal["reference"] = "reference"
    color: float = 0.5  # sRGB, on the object's pixels
    mask: float = 0.2  # coverage

    def __post_init__(self) -> None:
        for name in ("color", "mask"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class ReferenceView:
    """Compares a view with the input picture; satisfies `interfaces.Guidance`."""

    def __init__(self, *, photo: Float[Tensor, "S S 4"], color: float = 0.5, mask: float = 0.2) -> None:
        """Hold the picture on the device.

        Args:
            photo: the object alone, RGBA in [0, 1], colours premultiplied.
            color: weight of the squared difference of colours.
            mask: weight of the squared difference of alpha.
        """
        self.photo, self.color, self.mask = photo, color, mask
        self._sizes: dict[int, Tensor] = {}

    def __call__(
        self, image: Float[Tensor, "B H W 3"], rendering: Rendering, cameras: Cameras, progress: float
    ) -> GuidanceOutput:
        """Compare views from the picture's camera with the picture over the same background.

        color * sum alpha |image - picture|^2 + mask * sum (coverage - alpha)^2 with the picture's alpha, over
        all pixels; the second term's gradient reaches the coverage alone.
        """
        photo = self._at(image.shape[1])
        alpha = photo[..., 3:]
        background = rendering.background[:, None, None]
        difference = image - (photo[..., :3] + (1.0 - alpha) * background)
        excess = rendering.alpha.detach() - alpha
        losses = {
            "loss_color": self.color * (alpha * difference.square()).sum(),
            "loss_mask": self.mask * excess.square().sum(),
        }
        return GuidanceOutput(
            gradient=2.0 * self.color * alpha * difference,
            layers={"alpha": 2.0 * self.mask * excess},
            metrics=losses,
        )

    def _at(self, side: int) -> Float[Tensor, "1 s s 4"]:
        if side not in self._sizes:
            self._sizes[side] = resize(self.photo[None], side)
        return self._sizes[side]
