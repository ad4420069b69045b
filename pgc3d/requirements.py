"""The requirements of a member of a family; `context` has what it is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class ModelUse:
    """How a guidance uses an entry of `models`."""

    layouts: tuple[str, ...] = ("sdxl", "sd")  # of the models that it supports
    trains: bool = False  # needs diffusers' own modules, in which adapters can be trained
    decoder: bool = False  # needs the VAE's decoder
    controls: tuple[str, ...] = ()  # ControlNets for it: folders, hub ids or aliases
    evaluations: int = 2  # of the frozen UNet for each image, which is planned for as one batch
    encodes: bool = True  # images go through the VAE's encoder, and their gradients back through it

    def __or__(self, other: "ModelUse") -> "ModelUse":
        """A use that satisfies both."""
        return replace(
            self,
            layouts=tuple(layout for layout in self.layouts if layout in other.layouts),
            trains=self.trains or other.trains,
            decoder=self.decoder or other.decoder,
            controls=tuple(dict.fromkeys((*self.controls, *other.controls))),
            evaluations=max(self.evaluations, other.evaluations),
            encodes=self.encodes or other.encodes,
        )


@dataclass(frozen=True)
class Requirements:
    """The inputs, models and files that a member is built from."""

    prompt: bool = False
    inputs: frozenset[str] = frozenset()  # of the task, as "image" and "mesh"
    accepts: frozenset[str] = frozenset()  # optional inputs, as "depth"
    start: bool = False  # a stage with a surface to start from
    reference_view: bool = False  # cameras of kind `reference`, backgrounds of one colour, target "color"
    models: Mapping[str, ModelUse] = field(default_factory=dict)  # by their entries in `models`
    files: frozenset[tuple[str, str]] = frozenset()  # that must exist: (name of the setting, path)

    def __or__(self, other: "Requirements") -> "Requirements":
        """The requirements of both."""
        shared = self.models.keys() & other.models.keys()
        models = {**self.models, **other.models}
        return Requirements(
            prompt=self.prompt or other.prompt,
            inputs=self.inputs | other.inputs,
            accepts=self.accepts | other.accepts,
            start=self.start or other.start,
            reference_view=self.reference_view or other.reference_view,
            files=self.files | other.files,
            models=models | {name: self.models[name] | other.models[name] for name in shared},
        )
