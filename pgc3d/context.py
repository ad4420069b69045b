"""What the members of a family are built from.

Each configuration of a guidance, a representation or cameras answers two questions about itself:
`requires() -> Requirements` and `build(context)`. Nothing else asks which member it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.choices import MapName
from pgc3d.diffusion.files import ModelFolder
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.diffusion.zero123 import Zero123
from pgc3d.interfaces import Guidance, Rasterizer, Representation
from pgc3d.prompts import ViewPromptConfig
from pgc3d.requirements import ModelUse, Requirements
from pgc3d.types import Cameras, Handover, PreparedMesh, TextEmbedding


@dataclass(frozen=True)
class LoadedModel:
    """A model on the device: frozen and accelerated, or plain where its use trains."""

    folder: ModelFolder
    diffusion: LatentDiffusion
    controls: Mapping[str, Any]  # diffusers' ControlNetModels, by the names that the use has for them


@runtime_checkable
class ModelStore(Protocol):
    """The models of a run, each loaded once per use."""

    def get(self, name: str, use: ModelUse) -> LoadedModel:
        """The model behind an entry of `models`."""
        ...

    def embed(self, name: str, texts: tuple[str, ...]) -> TextEmbedding:
        """The texts as the model's UNet takes them; its encoders are loaded for the call only."""
        ...

    def view_prompts(self, name: str) -> ViewPromptConfig:
        """How the model's prompts name a camera."""
        ...

    def novel_view(self, name: str, use: ModelUse, image: Float[Tensor, "S S 4"]) -> Zero123:
        """A novel-view model conditioned on an image, RGBA with premultiplied colours."""
        ...


@dataclass(frozen=True)
class GuidanceContext:
    """What guidances are built from."""

    models: ModelStore
    prompt: str
    image: Callable[[], Float[Tensor, "S S 4"]]  # the prepared input image, on the device
    map: Callable[[MapName], Tensor | None]  # of the input image, on the device; None where it was not given
    reference: Cameras  # the camera of the input image, on the device
    generator: torch.Generator  # on the CPU; draws first weights, where a guidance trains some


@dataclass(frozen=True)
class RepresentationContext:
    """What representations are built from."""

    rasterizer: Rasterizer
    device: torch.device
    generator: torch.Generator  # on the CPU; draws first weights
    mesh: Callable[[], PreparedMesh]  # the prepared mesh of the task
    start: Handover | None = None  # what an earlier stage left
    low_memory: bool = False


@runtime_checkable
class GuidanceMember(Protocol):
    """A configuration of the guidance family."""

    @property
    def kind(self) -> str: ...

    def requires(self) -> Requirements: ...

    def input_resolution(self, rendered: int, model: int) -> int:
        """Side of the images that are evaluated, for renders and for a model of such sides."""
        ...

    def build(self, context: GuidanceContext) -> Guidance: ...


@runtime_checkable
class RepresentationMember(Protocol):
    """A configuration of the representation family."""

    @property
    def kind(self) -> str: ...

    @property
    def fixed_shape(self) -> bool:
        """Whether only colours are optimised."""
        ...

    def requires(self) -> Requirements: ...

    def render_bytes(self, *, low_memory: bool) -> int:
        """Memory kept for a rendered pixel until its gradient is known."""
        ...

    def build(self, context: RepresentationContext) -> Representation: ...
