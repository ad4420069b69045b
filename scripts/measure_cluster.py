"""The parts of a batch on a cluster, measured one by one on this machine, and what many nodes come to.

    python scripts/measure_cluster.py                                # storage is an S3 server that it starts
    python scripts/measure_cluster.py --url s3://BUCKET/PREFIX --jobs 10000 --job-seconds 330 --megabytes 60

Measured are the start of Ray, the start of a worker process and its imports, the messages that the link actor
takes, a run's folder to and in storage, and the status file of all jobs. From these:

    assets a second = min(slots / (start + job + upload), 1 / (publish + 2 status))

where `slots` is the number of jobs at once on all nodes, `start` a worker with its imports, `job` a run with
the load of its models, both on a worker, and `publish` and `status` what the driver does for each asset, one
after the other. What is not in it: jobs that are made again, and the last ones, when slots are idle.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgc3d.batch.connection import connected
from pgc3d.batch.job import Entry
from pgc3d.batch.link import Link
from pgc3d.batch.places import Bucket, Place
from pgc3d.batch.staging import Desk, UrlStaging
from pgc3d.batch.storage import Storage

FILES = 12  # of a run's folder, of one size
NODES = (1, 10, 100, 1000)
MESSAGES = 2000


@dataclass(frozen=True)
class Parts:
    """Seconds."""

    connect: float
    process: float  # an empty task in a process of its own
    imports: float  # of what a job needs, in such a process
    message: float  # of a worker, in the link actor
    upload: float
    publish: float  # with the removal of the first copies
    status: float  # one write
    read: float  # of the status file, when a batch is continued
    status_bytes: float

    @property
    def start(self) -> float:
        """A worker, until it can begin its job."""
        return self.process + self.imports

    def rate(self, slots: int, job: float) -> tuple[float, str]:
        """Assets a second, and what bounds them."""
        workers = slots / (self.start + job + self.upload)
        driver = 1 / (self.publish + 2 * self.status)
        return min((workers, "workers"), (driver, "driver"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="of storage that is empty; an S3 server on this machine when not given")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--job-seconds", type=float, default=330.0, help="of a job on one slot")
    parser.add_argument("--slots", type=int, default=1, help="of a node")
    parser.add_argument("--megabytes", type=float, default=60.0, help="of a run's folder")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    parts = measure(given)
    print_parts(parts, given)
    print_nodes(parts, given)


def measure(given: argparse.Namespace) -> Parts:
    """All parts; medians of the repetitions."""
    ray_parts = measure_ray(given)
    with storage(given.url) as found:
        upload, publish = staging_seconds(found, given)
        return Parts(*ray_parts, upload, publish, *status_seconds(Bucket(found), given))


def measure_ray(given: argparse.Namespace) -> tuple[float, float, float, float]:
    """Seconds of Ray's start, of a process, of imports, and of a message."""
    begin = time.perf_counter()
    with connected("auto", print_notice) as ray:
        connect = time.perf_counter() - begin
        process = ray.remote(max_calls=1)(nothing)
        imports = ray.remote(max_calls=1)(import_seconds)
        link = ray.remote(Link).options(num_cpus=0).remote()
        ray.get([process.remote(), link.take.remote(None)])  # Ray has begun a first worker by itself
        return (
            connect,
            median(lambda: ray.get(process.remote()), given.repeats),
            statistics.median(ray.get(imports.remote()) for _ in range(given.repeats)),
            median(lambda: send(ray, link), given.repeats) / MESSAGES,
        )


def print_notice(line: str) -> None:
    """A line that is not of the tables, on stderr, as about a cluster that is gone."""
    print(line, file=sys.stderr)


def nothing() -> None:
    """The work of an empty task."""


def import_seconds() -> float:
    """The time that a new process takes for what a job imports."""
    begin = time.perf_counter()
    import pgc3d.batch.cluster_work  # noqa: F401

    return time.perf_counter() - begin


def send(ray: Any, link: Any) -> None:
    """Messages of workers, each with the events of a second."""
    ray.get([link.report.remote(("name", "node", "host", bytes(500))) for _ in range(MESSAGES)])
    ray.get(link.take.remote(None))


def median(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of a call."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def staging_seconds(found: Storage, given: argparse.Namespace) -> tuple[float, float]:
    """The upload of a run's folder by a worker, and what the driver does with it."""
    staging, uploads, publications = UrlStaging(found), [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        for number in range(FILES):
            name = "manifest.json" if number == 0 else f"{number}.bin"
            (run / name).write_bytes(os.urandom(int(given.megabytes * 1e6 / FILES)))
        for _ in range(given.repeats):
            times = [time.perf_counter()]
            staged = staging.leave(Desk(Path(folder), is_shared=False), "run", done=True)
            times.append(time.perf_counter())
            staging.publish("run", staged)
            staging.clean("run", staged)
            times.append(time.perf_counter())
            uploads.append(times[1] - times[0])
            publications.append(times[2] - times[1])
    return statistics.median(uploads), statistics.median(publications)


def status_seconds(place: Place, given: argparse.Namespace) -> tuple[float, float, float]:
    """One write and one read of the status file of all jobs, and its size."""
    peak = {"resident": 4_000_000_000, "cuda": 16_000_000_000}
    entries = {
        f"a-prompt-of-some-words-{number}": Entry(
            f"a-prompt-of-some-words-{number}", "0" * 64, "done", folder="s3://bucket/prefix/name",
            asset="s3://bucket/prefix/name/asset.glb", seed=0, seconds=330.0, peak_memory_bytes=peak,
        )
        for number in range(given.jobs)
    }  # fmt: skip
    write = median(lambda: place.write(entries, {}), given.repeats)
    read = median(place.read, given.repeats)
    from pgc3d.batch.status import status_bytes

    return write, read, float(len(status_bytes(entries)))


@contextmanager
def storage(url: str | None) -> Iterator[Storage]:
    """The storage of a URL, or of a server on this machine that ends with the block."""
    if url is not None:
        yield Storage(url.rstrip("/"))
        return
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    boto3.client("s3").create_bucket(Bucket="assets")
    try:
        yield Storage("s3://assets/measured")
    finally:
        server.stop()


def print_parts(parts: Parts, given: argparse.Namespace) -> None:
    """The measured parts."""
    rows = {
        "start of Ray, once": parts.connect,
        "a worker process that does nothing": parts.process,
        "its imports": parts.imports,
        "a message of a worker, in the link actor": parts.message,
        f"upload of a run's folder, {FILES} files, {given.megabytes:g} MB": parts.upload,
        "its move to its names, by the driver": parts.publish,
        f"a write of the status file, {given.jobs} jobs, {parts.status_bytes / 1e6:.1f} MB": parts.status,
        "a read of it": parts.read,
    }
    print("| part | seconds |\n|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds:.{4 if seconds < 0.1 else 2}f} |")


def print_nodes(parts: Parts, given: argparse.Namespace) -> None:
    """Hours for all jobs by the number of nodes."""
    print(f"\n{given.jobs} assets, {given.job_seconds:g} s for a job, {given.slots} at once on a node")
    print("| nodes | assets an hour | hours | bound by | of the ideal |\n|---|---|---|---|---|")
    for nodes in NODES:
        slots = nodes * given.slots
        rate, bound = parts.rate(slots, given.job_seconds)
        ideal = slots / given.job_seconds
        hours = given.jobs / rate / 3600
        print(f"| {nodes} | {3600 * rate:.0f} | {hours:.1f} | {bound} | {rate / ideal:.0%} |")


if __name__ == "__main__":
    main()
