"""Means of a run's measurements between two logs, and those of all processes together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from pgc3d.errors import ProcessError
from pgc3d.parallel import Processes, fingerprint
from pgc3d.parameters import ParameterStore

VIEWS = "views"  # a measurement of each objective where several processes make a run


@dataclass
class RunningMeans:
    """Sums of the device scalars since the last log."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    skipped: Shaped[Tensor, "..."] | None = None
    skipped_in_a_row: Shaped[Tensor, "..."] | None = None

    def add(self, metrics: Mapping[str, Float[Tensor, ""]], finite: Bool[Tensor, ""]) -> None:
        """Add the measurements of a step, and whether it was made."""
        for key, value in metrics.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
            self.counts[key] = self.counts.get(key, 0) + 1
        bad = (~finite).float()
        self.skipped = bad if self.skipped is None else self.skipped + bad
        in_a_row = bad if self.skipped_in_a_row is None else (self.skipped_in_a_row + bad) * bad
        self.skipped_in_a_row = in_a_row

    def read(self) -> dict[str, float]:
        """Means since the last read, in one transfer, and the counts of skipped steps so far."""
        if self.skipped is None or self.skipped_in_a_row is None:
            return {}
        means = [total.float() / self.counts[key] for key, total in self.sums.items()]
        numbers = torch.stack([*means, self.skipped, self.skipped_in_a_row]).tolist()
        names = [*self.sums, "skipped_steps", "skipped_in_a_row"]
        self.sums.clear()
        self.counts.clear()
        return dict(zip(names, numbers, strict=True))


def combined(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The measurements of all processes: means weighted by their numbers of views.

    Those of one view alone, as a maximum, are means over the processes too.

    Args:
        measured: by process; each has `VIEWS` of the objectives that it has views of.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for values in measured:
        for name, value in values.items():
            weight = values.get(f"{name.split('/')[0]}/{VIEWS}", 1.0)
            sums[name] = sums.get(name, 0.0) + weight * value
            weights[name] = weights.get(name, 0.0) + weight
    return {name: total / weights[name] for name, total in sums.items() if not name.endswith(f"/{VIEWS}")}


def of_all(
    processes: Processes, measured: dict[str, float], store: ParameterStore, step: int
) -> dict[str, float]:
    """The measurements of all processes, after a check that they have the same parameters.

    Args:
        processes: of the run.
        measured: by this process.
        store: its parameters.
        step: number of steps that are done.

    Raises:
        ProcessError: the parameters differ, or another process failed.
    """
    if processes.size == 1:
        return measured
    found = processes.gather((measured, fingerprint(store.tensors())))
    if len({mark for _, mark in found}) > 1:
        raise ProcessError(
            f"the parameters must be the same in all processes, but differ after step {step}, as where GPUs "
            "are not of one kind; continue from the last checkpoint with one process"
        )
    return combined([values for values, _ in found])


def all_finite(tensors: Sequence[Tensor]) -> Bool[Tensor, ""]:
    """Whether all entries of the tensors are finite, as a scalar on their device."""
    return torch.isfinite(torch.nn.utils.get_total_norm(tensors, float("inf")))


def findings_of(metrics: Mapping[str, Tensor], objective: str) -> Float[Tensor, "3"]:
    """Of an objective's views in this process, 1 or 0 each.

    Some show the object; none of the object's pixels has a finite gradient; the rendering is not complete.
    """
    shown, broken = metrics[f"{objective}/coverage"] > 0, metrics[f"{objective}/nonfinite_fraction"] >= 1
    complete = metrics.get(f"{objective}/complete", torch.ones_like(shown, dtype=torch.float32))
    return torch.stack([shown.float(), broken.float(), (complete <= 0).float()])


def are_usable(findings: Float[Tensor, "N 3"]) -> Bool[Tensor, ""]:
    """Whether all renderings are complete, and no objective has only gradients that are not finite.

    A clipping rule replaces non-finite pixels by zeros; with no others left, the step must be skipped.

    Args:
        findings: see `findings_of`, each summed over all processes.
    """
    shown, broken, incomplete = findings.unbind(1)
    return ~((shown > 0) & (broken >= shown)).any() & (incomplete <= 0).all()
