"""The seams of pgc3d: what the loop and the composition root know of each family."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.parameters import ParameterStore
from pgc3d.types import Fragments, GuidanceOutput, Handover, Material, Mesh, Rendering, Step, Views


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
class Stateful(Protocol):
    """Something whose tensors belong into a checkpoint; their names and shapes stay those of the start."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class Representation(Stateful, Protocol):
    """A 3D asset that can be rendered and optimised.

    A step calls `begin_step`, then `render` for each objective, `regularizers` once, and after the optimiser
    `end_step`. Only `begin_step` and `end_step` change the representation's own state.
    """

    def begin_step(self, step: Step) -> None:
        """Prepare a step: what all its renders share is computed here, once.

        Raises:
            DivergedError: the surface is empty or not finite and could not be recovered.
        """
        ...

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """Render square images of `resolution` pixels a side.

        With a step, the one that was begun, the images carry gradients; None is for evaluation: exact, and
        without jitter.
        """
        ...

    def regularizers(self, step: Step) -> Mapping[str, Float[Tensor, ""]]:
        """The weighted regularisers of the step that was begun."""
        ...

    def parameter_store(self) -> ParameterStore: ...

    def end_step(self, step: Step) -> None:
        """Finish a step after the optimiser has changed the parameters."""
        ...

    def handover(self) -> Handover:
        """What a later stage can start from."""
        ...


@runtime_checkable
class Meshable(Representation, Protocol):
    """A representation whose surface is made by the run and can be turned into a mesh."""

    def to_mesh(self) -> Mesh:
        """The surface now, detached."""
        ...

    def material(self, points: Float[Tensor, "P 3"]) -> Material:
        """Surface properties at world points."""
        ...


@runtime_checkable
class Guidance(Protocol):
    """Computes how an image should change, without access to the representation."""

    def input_resolution(self, rendered: int) -> int:
        """Side in pixels of the images that the guidance evaluates, for renders of `rendered` pixels."""
        ...

    def __call__(
        self,
        image: Float[Tensor, "B H W 3"],
        rendering: Rendering,
        views: Views,
        step: Step,
    ) -> GuidanceOutput:
        """The gradient on `image`, the rendering's colours or normals at the guidance's input resolution."""
        ...


@runtime_checkable
class SupportsMicroBatch(Protocol):
    """A guidance that can evaluate fewer images at a time, with the same gradient in less memory."""

    micro_batch: int  # 0: all at once; may be changed between calls


@runtime_checkable
class Clipper(Protocol):
    """Bounds a pixel gradient."""

    def __call__(self, gradient: Float[Tensor, "*B H W C"], /) -> Float[Tensor, "*B H W C"]: ...
