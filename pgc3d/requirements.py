"""What a member of a family needs before it can be built; see `context` for what it is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class ModelUse:
    """How a guidance uses an entry of `models`."""

    layouts: tuple[str, ...] = ("sdxl", "sd")  # of the models that it can work with
    trains: bool = False  # the network is loaded plain, so that adapters in it can be trained
    decoder: bool = False  # the VAE's decoder is needed
    controls: tuple[str, ...] = ()  # ControlNets beside it: folders, hub ids or aliases

    def __or__(self, other: "ModelUse") -> "ModelUse":
        """One use that serves both."""
        return replace(
            self,
            layouts=tuple(layout for layout in self.layouts if layout in other.layouts),
            trains=self.trains or other.trains,
            decoder=self.decoder or other.decoder,
            controls=tuple(dict.fromkeys((*self.controls, *other.controls))),
        )


@dataclass(frozen=True)
class Requirements:
    """What has to be there before a member can be built."""

    prompt: bool = False
    inputs: frozenset[str] = frozenset()  # of the task, as "image" and "mesh"
    accepts: frozenset[str] = frozenset()  # inputs that are used where they are given, as "depth"
    reference_view: bool = False  # cameras of kind `reference`, one colour behind, and the target color
    models: Mapping[str, ModelUse] = field(default_factory=dict)  # by the entry of `models`
    files: frozenset[tuple[str, str]] = frozenset()  # that must be there: the setting and the path in it

    def __or__(self, other: "Requirements") -> "Requirements":
        """The requirements of both."""
        shared = self.models.keys() & other.models.keys()
        models = {**self.models, **other.models}
        return Requirements(
            prompt=self.prompt or other.prompt,
            inputs=self.inputs | other.inputs,
            accepts=self.accepts | other.accepts,
            reference_view=self.reference_view or other.reference_view,
            files=self.files | other.files,
            models=models | {name: self.models[name] | other.models[name] for name in shared},
        )
