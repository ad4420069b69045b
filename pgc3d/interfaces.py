"""The interfaces of pgc3d: the protocols through which the loop and the composition root use each family."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.parameters import ParameterStore
from pgc3d.types import Fragments, GuidanceOutput, Handover, Material, Mesh, Rendering, Step, Views


@runtime_checkable
class Rasterizer(Protocol):
    """Visibility and interpolation of triangles; a backend has no state but its device and native context."""

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Fragments:
        """The nearest triangle of every pixel.

        Args:
            clip: vertices in OpenGL clip space.
            faces: vertex indices of the triangles.
            resolution: (height, width) in pixels.
        """
        ...

    def interpolate(
        self, attributes: Float[Tensor, "A V C"], fragments: Fragments, faces: Int[Tensor, "F 3"]
    ) -> Float[Tensor, "B H W C"]:
        """Vertex attributes interpolated at every pixel, 0 where no triangle covers it; A is 1 or B."""
        ...


@runtime_checkable
class Shading(Protocol):
    """The light of a render's views on the material at P of its pixels."""

    def __call__(
        self,
        material: Material,
        normal: Float[Tensor, "P 3"],
        to_camera: Float[Tensor, "P 3"],
        view: Int[Tensor, " P"],
    ) -> Float[Tensor, "P 3"]:
        """The colour in sRGB that the camera sees, in places above 1.

        Args:
            material: at the pixels' surface points.
            normal: unit, world space; 0 where no surface is.
            to_camera: unit, world space.
            view: the view that each pixel belongs to.
        """
        ...


@runtime_checkable
class Stateful(Protocol):
    """An object whose tensors are part of a checkpoint.

    Their shapes never change, and their names only where a first step adds some, as the state of an
    optimiser. `load_state_dict` restores what the object had, also a state from before that step.
    """

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class Representation(Stateful, Protocol):
    """A 3D asset that can be rendered and optimised.

    A step calls `begin_step`, then `render` for each objective, `regularizers` once, and after the optimiser
    `end_step`. Only `begin_step` and `end_step` change the representation's own state.
    """

    def begin_step(self, step: Step) -> None:
        """Prepare a step: compute once what all its renders share.

        Raises:
            DivergedError: the surface is empty or not finite and could not be recovered.
        """
        ...

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """Render square images.

        Args:
            views: cameras and background colours.
            resolution: side of the images in pixels.
            step: the step that was begun: the images have gradients; None for evaluation: exact, and without
                jitter.
        """
        ...

    def regularizers(self, step: Step) -> Mapping[str, Float[Tensor, ""]]:
        """The regularisation losses of the step that was begun, by name and already weighted."""
        ...

    def parameter_store(self) -> ParameterStore:
        """The parameters with their optimiser state; always the same store."""
        ...

    def end_step(self, step: Step) -> None:
        """Finish a step, after the optimiser has changed the parameters."""
        ...

    def handover(self) -> Handover:
        """The result of the stage in the form that a later stage can start from."""
        ...


@runtime_checkable
class Meshable(Representation, Protocol):
    """A representation whose surface is optimised by the run and can be converted to a mesh."""

    def to_mesh(self) -> Mesh:
        """The current surface, detached."""
        ...

    def material(self, points: Float[Tensor, "P 3"]) -> Material:
        """Surface properties at points in the world."""
        ...


@runtime_checkable
class Guidance(Protocol):
    """Computes the gradient of a loss with respect to an image, without access to the representation."""

    def input_resolution(self, rendered: int) -> int:
        """Side in pixels of the images that the guidance evaluates, for renders of `rendered` pixels."""
        ...

    def __call__(
        self,
        image: Float[Tensor, "B H W C"],
        rendering: Rendering,
        views: Views,
        step: Step,
    ) -> GuidanceOutput:
        """The gradient with respect to `image`.

        Args:
            image: the rendering's colours or normals in [0, 1], at the guidance's input resolution; four
                channels where it `SupportsLatents`.
            rendering: all buffers of the views, at the resolution of the render.
            views: cameras and background colours.
            step: progress of the run, and the source of random numbers.
        """
        ...


@runtime_checkable
class SupportsMicroBatch(Protocol):
    """A guidance that can evaluate fewer images at a time, with the same gradient in less memory."""

    micro_batch: int  # 0: all at once; may be changed between calls


@runtime_checkable
class TrainsOnViews(Protocol):
    """A guidance that trains something on the views, in which all processes of a run take part together."""

    def train_without_views(self, step: Step) -> None:
        """Take part in a step in which this process has none of the views, in place of a call."""
        ...


@runtime_checkable
class SupportsLatents(Protocol):
    """A guidance that can evaluate renderings as latents, without an encoder.

    Its image then has four channels, the colours or normals in [-1, 1] and the coverage in [0, 1], and its
    input resolution is that of the latents.
    """

    as_latent: bool


@runtime_checkable
class Clipper(Protocol):
    """Bounds an image gradient; `pgc.py` has the rules."""

    def __call__(self, gradient: Float[Tensor, "*B H W C"], /) -> Float[Tensor, "*B H W C"]:
        """The clipped gradient, of the same shape and type."""
        ...
