"""What a job takes of a node, in Ray's units: whole CPU cores, and a fraction of a GPU.

Ray starts as many jobs on a node as its cores and GPUs suffice for. A whole GPU for each job is the default
with full-size models: two of them rarely fit one. The bundled models need less than 2 GB and leave most of a
GPU idle, so four jobs share one. A job on a CPU takes one core: many jobs of one thread are faster than one
job of many threads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pgc3d.batch.job import Job
from pgc3d.config import Config
from pgc3d.diffusion.aliases import BUNDLED

BUNDLED_GPUS = 0.25  # of one GPU, for a job whose models are all bundled
GPU_CPUS = 2  # cores of a job with a whole GPU: one for its steps, another for its exports


@dataclass(frozen=True)
class Resources:
    """The part of a node that a job takes."""

    cpus: int
    gpus: float  # 0 to 1


def resources_of(config: Config, *, gpus: float | None, cpus: int | None, has_gpus: bool) -> Resources:
    """The resources of a job.

    Args:
        config: of the job.
        gpus: for every job, as the user gave it.
        cpus: likewise.
        has_gpus: whether the cluster has any now; without, jobs of bundled models run on CPUs, and others
            wait for a node with a GPU.
    """
    if gpus is None:
        gpus = _gpus_of(config, has_gpus=has_gpus)
    return Resources(cpus if cpus is not None else GPU_CPUS if gpus == 1 else 1, gpus)


def _gpus_of(config: Config, *, has_gpus: bool) -> float:
    device, bundled = config.run.device, is_bundled(config)
    if device == "cpu" or (device == "auto" and bundled and not has_gpus):
        return 0.0
    return BUNDLED_GPUS if bundled else 1.0


def is_bundled(config: Config) -> bool:
    """Whether a job needs no model but the bundled ones."""
    return all(config.models[name].name == BUNDLED for name in config.requires().models)


def placed(job: Job, resources: Resources) -> Job:
    """The job with the device of its resources: without a GPU of its own it must not use one that it sees."""
    run = job.config.run
    if resources.gpus == 0 and run.device == "auto":
        return replace(job, config=replace(job.config, run=replace(run, device="cpu")))
    return job


def fitting(resources: Resources, nodes: list[Mapping[str, float]]) -> int:
    """How many jobs of one kind run at once.

    Args:
        resources: of each job.
        nodes: the resources of each node, by Ray's names `CPU` and `GPU`.
    """
    return sum(_on(resources, node) for node in nodes)


def _on(resources: Resources, node: Mapping[str, float]) -> int:
    by_cpus = int(node.get("CPU", 0) // resources.cpus)
    if resources.gpus == 0:
        return by_cpus
    return min(by_cpus, int(node.get("GPU", 0)) * int(1 / resources.gpus + 1e-9))
