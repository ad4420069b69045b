"""Jobs on a cluster, by Ray: it places each on a node with free resources, and again where a worker dies.

Each job is a task of Ray in a worker process of its own, as are the processes of `processes`: what one job
does not free, its end frees. A task that fails does so for the job; one whose process, node or result is lost
is submitted again, to another node where there is one, a limited number of times.
"""

import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pgc3d.batch.cluster_work import Answer, Order, work
from pgc3d.batch.connection import AUTO
from pgc3d.batch.inputs import sent_inputs
from pgc3d.batch.job import Job, Outcome
from pgc3d.batch.link import Link
from pgc3d.batch.places import Place
from pgc3d.batch.queue import BatchOptions, Calls
from pgc3d.batch.resources import Resources, fitting, placed, resources_of
from pgc3d.batch.storage import one_line
from pgc3d.errors import Pgc3dError
from pgc3d.events import Event

AHEAD = 16  # jobs that are submitted before there are resources for them: what a cluster grows by
POLL = 0.2  # seconds between two reads of the stop flag and of the messages


@dataclass(frozen=True)
class ClusterOptions:
    """How jobs are placed; None takes what each job needs, see `resources`."""

    address: str = AUTO  # of a cluster; auto joins or starts one on this machine
    gpus_per_job: float | None = None  # 0 to 1
    cpus_per_job: int | None = None
    attempts: int = 4  # of a job whose worker dies


@dataclass
class _Attempt:
    """A task of Ray that was submitted for a job."""

    order: Order
    resources: Resources
    node: str = ""  # id of the node that it runs on
    host: str = ""
    avoid: tuple[str, ...] = ()  # ids of nodes where earlier attempts died
    results: list[Event] = field(default_factory=list)  # of its files, until they are in their places


@dataclass(frozen=True)
class ClusterRunner:
    """Makes the jobs of a batch on a cluster."""

    ray: Any  # connected
    place: Place
    options: BatchOptions
    cluster: ClusterOptions

    def slots(self, jobs: Sequence[Job], notify: Callable[[str], None]) -> int:
        """How many of the jobs run at once on the nodes that there are now, at least 1.

        Args:
            jobs: of the list.
            notify: receives a line where no node has the resources of one.
        """
        kinds = Counter(self.resources(job) for job in jobs if not job.error)
        if not kinds:
            return 1
        resources = kinds.most_common(1)[0][0]
        found = fitting(resources, self._nodes())
        if not found:
            notify(
                f"no node of the cluster has {resources.cpus} CPUs and {resources.gpus:g} GPUs now: jobs "
                "wait for one; see --cpus-per-job and --gpus-per-job"
            )
        return max(1, min(found, len(jobs)))

    def resources(self, job: Job) -> Resources:
        """What a job takes of a node."""
        has_gpus = any(node.get("GPU", 0) > 0 for node in self._nodes())
        own = self.cluster
        return resources_of(job.config, gpus=own.gpus_per_job, cpus=own.cpus_per_job, has_gpus=has_gpus)

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def __call__(self, jobs: Mapping[str, Job], calls: Calls) -> Iterator[tuple[str, Outcome]]:
        """The name of each job and how it ended, as they end."""
        return _Schedule(self, jobs, calls).run()


class _Schedule:
    """The tasks of one batch: those that wait here, and those that Ray has."""

    def __init__(self, runner: ClusterRunner, jobs: Mapping[str, Job], calls: Calls) -> None:
        self._runner, self._ray, self._calls = runner, runner.ray, calls
        self._waiting, self._running = deque(jobs.values()), dict[Any, _Attempt]()
        self._begun: set[str] = set()  # names of jobs
        self._staging = runner.place.staging()
        self._task = self._ray.remote(max_calls=1)(work)  # a process for each job
        self._link = (
            self._ray.remote(Link)
            .options(num_cpus=0, max_restarts=-1, scheduling_strategy=self._here())
            .remote()
        )

    def _here(self) -> Any:
        """On this node, so that the actor ends with this process alone."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)

    def run(self) -> Iterator[tuple[str, Outcome]]:
        """The outcomes as they come; results are in their places before."""
        try:
            while self._running or (self._waiting and self._calls.stop.signal is None):
                self._submit_waiting()
                ready, _ = self._ray.wait(list(self._running), timeout=POLL)
                self._receive()
                for reference in ready:
                    yield from self._end(reference)
        finally:
            self._ray.kill(self._link)
            self._staging.close()

    def _submit_waiting(self) -> None:
        if self._calls.stop.signal is not None:
            self._cancel_waiting()
            return
        ahead = sum(not attempt.node for attempt in self._running.values())
        while self._waiting and ahead < AHEAD:
            self._submit(self._first(self._waiting.popleft()))
            ahead += 1

    def _first(self, job: Job) -> _Attempt:
        """The first attempt of a job, with its inputs in the object store."""
        runner, put = self._runner, self._ray.put
        resources = runner.resources(job)
        order = Order(
            placed(job, resources),
            sent_inputs(job.task, put),
            self._staging,
            put(self._staging.stored(job.name)),
            resources.cpus,
            runner.options.sweep_steps,
            runner.options.retriever,
            attempts=runner.cluster.attempts,
        )
        return _Attempt(order, resources)

    def _submit(self, attempt: _Attempt) -> None:
        options: dict[str, Any] = {
            "num_cpus": attempt.resources.cpus,
            "num_gpus": attempt.resources.gpus,
            "max_retries": 0,  # here, so that each retry is printed
            "name": f"pgc3d {attempt.order.job.name}",
        }
        if attempt.avoid:
            others = f"!in({','.join(attempt.avoid)})"
            options |= {
                "label_selector": {"ray.io/node-id": others},
                "fallback_strategy": [{"label_selector": {}}],
            }
        self._running[self._task.options(**options).remote(attempt.order, self._link)] = attempt

    def _cancel_waiting(self) -> None:
        """Take back tasks that have not begun; those that run receive the flag."""
        for reference, attempt in list(self._running.items()):
            if not attempt.node:
                self._ray.cancel(reference)

    def _receive(self) -> None:
        """Pass on the messages of the workers."""
        try:
            messages = self._ray.get(self._link.take.remote(self._calls.stop.signal))
        except self._ray.exceptions.RayError:  # it is started again
            return
        attempts = {attempt.order.job.name: attempt for attempt in self._running.values()}
        for name, node, host, events in messages:
            if name in attempts:
                attempts[name].node, attempts[name].host = node, host
                self._begin(name)
                for event in pickle.loads(events):
                    self._pass_on(attempts[name], event)

    def _pass_on(self, attempt: _Attempt, event: Event) -> None:
        """Pass on an event; one of a result waits until that is in its place."""
        if event.file is None or event.kind != "result":
            self._calls.on_event(attempt.order.job.name, event)
        else:
            attempt.results.append(event)

    def _begin(self, name: str) -> None:
        if name not in self._begun:
            self._begun.add(name)
            self._calls.on_begin(name)

    def _end(self, reference: Any) -> Iterator[tuple[str, Outcome]]:
        """The outcome of a task that ended; nothing of one that is tried again, or was taken back."""
        attempt = self._running.pop(reference)
        name, exceptions = attempt.order.job.name, self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except exceptions.TaskCancelledError:
            answer = Answer(Outcome("stopped"))
            if name not in self._begun:
                return
        except exceptions.RayTaskError as error:
            answer = Answer(Outcome("failed", f"an unexpected error: {one_line(error.cause)}"))
        except exceptions.RayError as error:
            lost = self._again(attempt, one_line(error))
            if lost is None:
                return
            answer = Answer(lost)
        self._begin(name)
        outcome = self._published(name, answer)
        for event in attempt.results if outcome.state == "done" else ():
            file = Path(event.file or "").name
            self._calls.on_event(name, replace(event, file=self._runner.place.path(name, file)))
        yield name, outcome
        if outcome.state == "done":
            self._clean(name, answer)

    def _again(self, attempt: _Attempt, error: str) -> Outcome | None:
        """Submit a job again whose worker is lost; its outcome where that was the last attempt."""
        order, where = attempt.order, attempt.host or "a node"
        if self._calls.stop.signal is not None:
            return Outcome("stopped", error)
        if order.attempt >= order.attempts:
            return Outcome(
                "failed",
                f"the worker of a run must end with a result, but {order.attempts} of them were lost, the "
                f"last one on {where}: {error}; where memory runs out use --low-memory, or "
                "fewer jobs on a node",
            )
        self._note(order.job.name, f"its worker on {where} is lost, and it begins again: {error}")
        avoid = tuple(dict.fromkeys((*attempt.avoid, *([attempt.node] if attempt.node else []))))
        again = replace(order, attempt=order.attempt + 1)
        self._submit(_Attempt(again, attempt.resources, avoid=avoid))
        return None

    def _published(self, name: str, answer: Answer) -> Outcome:
        """The outcome, after its files are in their places."""
        try:
            self._staging.publish(name, answer.staged)
        except Pgc3dError as error:
            return replace(answer.outcome, state="failed", reason=str(error), asset="")
        return answer.outcome

    def _clean(self, name: str, answer: Answer) -> None:
        try:
            self._staging.clean(name, answer.staged)
        except Pgc3dError as error:
            self._note(name, f"warning: {error}")

    def _note(self, name: str, text: str) -> None:
        self._calls.on_event(name, Event("build", message=text))
