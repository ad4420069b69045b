"""The parameters of a representation in named groups, with the state of their optimiser."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from jaxtyping import Bool
from torch import Tensor

_SCALE_DECAY = 0.99  # of the running mean square of a group's gradients
# Largest ratio of a step's mean square to the running mean that the mean follows: one step with far larger
# gradients, as of a sliver triangle, must not make those of the next hundred steps small beside eps.
_SCALE_GROWTH = 4.0


class ParameterGroup(TypedDict):
    """A parameter group in the form of torch's optimisers."""

    name: str
    params: list[Tensor]
    lr: float
    # Adam's eps as a fraction of the root mean square of the group's gradients: entries far below it move
    # little, and a common factor on all gradients changes nothing
    relative_eps: NotRequired[float]


class ParameterStore:
    """Named groups of parameters and their Adam state.

    A representation makes one store and always returns the same one.
    """

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        names = [group["name"] for group in groups]
        if len(set(names)) != len(names):
            raise ValueError(f"parameter groups must have different names, got {names}")
        self.groups = list(groups)
        self._optimizer: torch.optim.Adam | None = None
        self._scales: dict[str, Tensor] = {}  # by group: [running mean square, its weight]

    def tensors(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [tensor for group in self.groups for tensor in group["params"]]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.tensors()[0].device

    @property
    def optimizer(self) -> torch.optim.Adam:
        """The optimiser that `use_adam` made.

        Raises:
            RuntimeError: there is none yet.
        """
        if self._optimizer is None:
            raise RuntimeError("use_adam must be called before the parameters can be optimised")
        return self._optimizer

    def use_adam(self, *, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-15) -> None:
        """Create a fused Adam for all groups; fused kernels can skip a step without a host synchronisation.

        Args:
            betas: decay rates of the running means of the gradient and its square.
            eps: of groups without a `relative_eps`.
        """
        groups: list[dict[str, Any]] = []
        for group in self.groups:
            relative = group.get("relative_eps")
            entry = {"name": group["name"], "params": group["params"], "lr": group["lr"]}
            groups.append(entry if relative is None else entry | {"eps": relative})
        self._optimizer = torch.optim.Adam(groups, betas=betas, eps=eps, fused=True)
        self._scales = {
            group["name"]: torch.zeros(2, device=self.device)
            for group in self.groups
            if group.get("relative_eps") is not None
        }

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, finite: Bool[Tensor, ""], *, lr_scale: float = 1.0) -> None:
        """Make one step of Adam where `finite` is true, else change nothing; without a host synchronisation.

        Args:
            finite: whether the step is made, on the device.
            lr_scale: factor of all learning rates in this step.
        """
        optimizer, scales = self.optimizer, dict(self._scales)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * lr_scale
            if group["name"] in scales:
                scales[group["name"]] = _normalize(scales[group["name"]], group["params"], finite)
        # fused optimisers read this attribute for GradScaler: where it is 1, the kernel changes nothing
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        self._scales = scales  # last: a step that fails changes nothing

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's state as named tensors: GROUP.NUMBER.KEY, and GROUP.scale where there is one."""
        state: dict[str, Tensor] = {}
        for group in self.groups:
            for number, param in enumerate(group["params"]):
                for key, value in self.optimizer.state.get(param, {}).items():
                    state[f"{group['name']}.{number}.{key}"] = value
        return state | {f"{name}.scale": value for name, value in self._scales.items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the optimiser's state from a `state_dict`.

        Raises:
            KeyError: an entry belongs to no parameter.
            ValueError: an entry has another shape than its parameter, is missing, or is not finite.
        """
        params = {
            f"{group['name']}.{number}": param
            for group in self.groups
            for number, param in enumerate(group["params"])
        }
        state: dict[Tensor, dict[str, Tensor]] = {}
        for name, value in state_dict.items():
            owner, _, key = name.rpartition(".")
            if key == "scale" and owner in self._scales:
                self._scales[owner] = _like(self._scales[owner], value, name)
            else:
                state.setdefault(params[owner], {})[key] = value
        for owner, param in params.items():
            if param in state:
                state[param] = _adam_state(param, state[param], owner)
        self.optimizer.state.clear()
        self.optimizer.state.update(state)


def _adam_state(param: Tensor, stored: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    like = param.detach()
    templates = {"step": torch.zeros((), device=like.device), "exp_avg": like, "exp_avg_sq": like}
    if stored.keys() != templates.keys():
        raise ValueError(f"the state of {name} must hold {', '.join(templates)}, got {', '.join(stored)}")
    return {key: _like(template, stored[key], f"{name}.{key}") for key, template in templates.items()}


def _like(template: Tensor, value: Tensor, name: str) -> Tensor:
    """A copy of `value` on the device of `template`, whose shape and type it must have."""
    if value.shape != template.shape or value.dtype != template.dtype:
        raise ValueError(
            f"{name} must be {template.dtype} of the shape {list(template.shape)}, got {value.dtype} of "
            f"{list(value.shape)}"
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return value.to(template.device).clone()


def _normalize(scale: Tensor, params: Sequence[Tensor], finite: Tensor) -> Tensor:
    """Divide gradients in place by their running root mean square; returns [mean square, its weight]."""
    gradients = [param.grad for param in params if param.grad is not None]
    if not gradients:
        return scale
    count = sum(gradient.numel() for gradient in gradients)
    square = torch.stack([gradient.square().sum() for gradient in gradients]).sum() / count
    usable = finite & (square > 0)
    most = torch.where(scale[1] > 0, _SCALE_GROWTH * scale[0] / scale[1].clamp_min(1e-30), torch.inf)
    target = torch.stack([torch.where(usable, torch.minimum(square, most), 0.0), torch.ones_like(square)])
    running = torch.lerp(scale, target, torch.where(usable, 1.0 - _SCALE_DECAY, 0.0))
    mean = running[0] / running[1].clamp_min(1e-30)
    factor = torch.where(running[1] > 0, mean.clamp_min(1e-30).rsqrt(), 1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return running
