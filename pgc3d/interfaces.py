"""The seams of pgc3d: what the loop and the composition root know of each family."""

from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.types import Cameras, Fragments, GuidanceOutput, Material, Mesh, Rendering


class ParameterGroup(TypedDict):
    """A group as torch's optimisers take it."""

    name: str
    params: list[Tensor]
    lr: float
    eps: NotRequired[float]  # Adam's, where gradients far below a known size should move little


@runtime_checkable
class Rasterizer(Protocol):
    """Visibility and interpolation; a backend holds its device and its native context, nothing else."""

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Fragments:
        """Find the nearest triangle of every pixel; resolution is (height, width)."""
        ...

    def interpolate(
        self, attributes: Float[Tensor, "A V C"], fragments: Fragments, faces: Int[Tensor, "F 3"]
    ) -> Float[Tensor, "B H W C"]:
        """Spread vertex attributes (A = 1 or B) over the pixels, 0 where nothing was hit."""
        ...


@runtime_checkable
class Representation(Protocol):
    """A 3D asset that can be rendered and optimised."""

    def render(
        self,
        cameras: Cameras,
        resolution: int,
        background: Float[Tensor, "B 3"],
        *,
        progress: float = 1.0,
    ) -> Rendering:
        """Render square pictures; `Rendering.losses` holds the weighted regularisers of what was rendered.

        Raises:
            DivergedError: the surface is empty or not finite and could not be recovered.
        """
        ...

    def parameter_groups(self) -> list[ParameterGroup]: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class Shape(Representation, Protocol):
    """A representation whose surface is made by the run, too, and can be turned into a mesh."""

    def to_mesh(self) -> Mesh:
        """The surface now, detached."""
        ...

    def material(self, points: Float[Tensor, "P 3"]) -> Material:
        """Surface properties at world points."""
        ...


@runtime_checkable
class Guidance(Protocol):
    """Says how a picture should change; it never sees the representation."""

    def __call__(
        self,
        image: Float[Tensor, "B H W 3"],
        rendering: Rendering,
        cameras: Cameras,
        progress: float,
    ) -> GuidanceOutput: ...


@runtime_checkable
class Divisible(Protocol):
    """A guidance that can look at fewer pictures at a time, with the same answer in less memory."""

    micro_batch: int  # 0: all at once; may be changed between calls


@runtime_checkable
class Clipper(Protocol):
    """Bounds a pixel gradient."""

    def __call__(self, gradient: Float[Tensor, "*B H W C"], /) -> Float[Tensor, "*B H W C"]: ...


def parameters(groups: Iterable[ParameterGroup]) -> list[Tensor]:
    """All tensors of the groups, in order."""
    return [parameter for group in groups for parameter in group["params"]]
