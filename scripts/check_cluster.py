"""Batches with `--ray`: throughput beside processes without it, and what is lost when workers are killed.

    python scripts/check_cluster.py OUT --assets 8 --device cpu --jobs 2
    python scripts/check_cluster.py OUT --assets 200 --device cuda --jobs 4 --measured 24

Makes tiny assets of the bundled prior, half of them from prompts, half on a mesh, with the smallest numbers
of steps, three times: `loop` by `pgc3d batch --jobs N`, `ray` by `--ray auto`, both with the first
`--measured` entries and the same cores or GPUs for each job, and `kills` with all entries by Ray,
while processes that make one are killed by SIGKILL at random times. Several GPUs are used by `ray` and
`kills` alone, and the ideal is that number times the loop. Where other programs use the machine, too, repeat
parts in turn, as with `--parts warm loop ray ray loop kills`, and see the processor's seconds for each asset.
The first part, `warm`, makes two assets: what it compiles is on the disk for the others.

Then each asset must be there exactly once: one line that it is done, one record, one folder, an asset with
the hash of its manifest, nothing else in the folder. On a CPU all batches must make the same bytes, too.
Seconds are from the line with which a batch begins, after its start and that of Ray, to the last asset.
Writes OUT/cluster.json and prints it as a table; exit code 1 where an asset is lost, or there twice.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import trimesh

from pgc3d.batch.places import Folder
from pgc3d.disk import replace_file, sha256

PARTS = ("warm", "loop", "ray", "kills")
WITHOUT_RAY = ("warm", "loop")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "brown")
OBJECTS = ("chair", "table", "sofa", "car", "lamp")
TINY = [
    "run.resolution=[32]",
    "run.resolution_until=[]",
    "logging.preview_every=0",
    "objectives.color.batch=1",
]
WORKER = "ray::pgc3d "  # begin of the title of a process that makes an asset
DONE = re.compile(r"\[([\w.-]+)\] done: ")
LOST = re.compile(r"\[([\w.-]+)\] .*its worker on .* is lost")
KEPT = (".lock", "status.json")  # beside the folders of the jobs
MAX_ATTEMPTS = 20


@dataclass
class Measured:
    """One batch."""

    part: str
    folder: str  # in OUT
    jobs: int  # at once
    assets: int
    seconds: float = 0.0
    startup: float = 0.0  # seconds before the batch begins
    exit_code: int = 0
    done: dict[str, int] = field(default_factory=dict)  # lines by name
    lost: dict[str, int] = field(default_factory=dict)  # lines about workers by name
    kills: int = 0
    faults: list[str] = field(default_factory=list)
    processor: float = 0.0  # seconds of all cores, of all processes that the batch starts
    peak_gb: float = 0.0  # of all processes together, resident, where it was sampled

    @property
    def rate(self) -> float:
        """Assets per minute."""
        return 60 * self.assets / self.seconds if self.seconds else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Make, kill, check, print."""
    given = parse(arguments)
    given.out.mkdir(parents=True)
    cards = count_gpus() if given.device == "cuda" else 1
    rows = list[Measured]()
    for number, part in enumerate(given.parts, 1):
        count = {"warm": 2, "kills": given.assets}.get(part, given.measured or given.assets)
        jobs = max(1, given.jobs // cards) if part in WITHOUT_RAY else given.jobs
        row = Measured(part, f"{number}-{part}", jobs, count)
        names = write_list(given.out / f"{row.folder}.yaml", count, given)
        run_part(row, cards, given)
        row.faults = list(faults(given.out / row.folder, names, row))
        for earlier in rows if given.device == "cpu" else ():
            row.faults += differing(given.out / earlier.folder, given.out / row.folder)
        rows.append(row)
        record = {"gpus": cards, "device": given.device, "rows": [asdict(row) for row in rows]}
        replace_file(given.out / "cluster.json", (json.dumps(record, indent=1) + "\n").encode())
    print_table(rows, cards)
    return 1 if any(row.faults for row in rows) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--assets", type=int, default=8, help="of the part with kills")
    parser.add_argument("--measured", type=int, help="assets of loop and ray; as many when not given")
    parser.add_argument("--jobs", type=int, default=2, help="at once, on all GPUs together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="of each asset")
    parser.add_argument("--kills", type=int, help="a quarter of the assets when not given")
    parser.add_argument(
        "--kill-every", type=float, default=10.0, help="mean of the seconds between two kills"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    return parser.parse_args(arguments)


def count_gpus() -> int:
    """CUDA devices, counted in another process, so that this one holds no memory on them."""
    code = "import torch; print(torch.cuda.device_count())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return max(1, int(found.stdout))


def write_list(path: Path, count: int, given: argparse.Namespace) -> list[str]:
    """A list of tiny jobs, with a mesh beside it; returns their names."""
    mesh = path.with_name("box.ply")
    trimesh.creation.box((1.0, 1.0, 1.0)).export(mesh)
    entries = []
    for number in range(count):
        color, thing = COLORS[number % len(COLORS)], OBJECTS[number % len(OBJECTS)]
        entry: dict[str, Any] = {
            "name": f"asset-{number:04d}",
            "prompt": f"a {color} {thing}",
            "seed": number,
        }
        entry["prompt"] = f"a {color} {thing}"
        shared = {"guidance": "mini", "steps": given.steps, "device": given.device, "texture-size": 128}
        if number % 2:
            entry |= {"mesh": mesh.name, "set": TINY}
        else:
            entry |= {"faces": 0, "set": [*TINY, "representation.resolution=16", "export.format=stl"]}
        entry["set"] = [*entry["set"], f"logging.checkpoint_every={max(1, given.steps // 2)}"]
        entries.append(entry | shared)
    path.write_text(json.dumps(entries), encoding="utf-8")
    return [str(entry["name"]) for entry in entries]


def run_part(measured: Measured, cards: int, given: argparse.Namespace) -> None:
    """Run a batch as a user does, and read its lines."""
    name, jobs = measured.folder, measured.jobs
    command = [sys.executable, "-m", "pgc3d", "batch", f"{name}.yaml", "--out", name]
    if measured.part in WITHOUT_RAY:
        command += ["--jobs", str(jobs)]
    else:
        gpus = min(1.0, cards / jobs) if given.device == "cuda" else 0.0
        cpus = max(1, len(os.sched_getaffinity(0)) // jobs)
        command += ["--ray", "auto", "--attempts", str(MAX_ATTEMPTS)]
        command += ["--cpus-per-job", str(cpus), "--gpus-per-job", str(gpus)]
    begin = time.monotonic()
    with (
        (given.out / f"{name}.txt").open("w") as paths,
        subprocess.Popen(command, cwd=given.out, stdout=paths, stderr=subprocess.PIPE, text=True) as process,
    ):
        ended = threading.Event()
        watch = threading.Thread(target=watch_workers, args=(process.pid, measured, given, ended))
        watch.start()
        read_lines(process, given.out / f"{name}.log", measured, begin)
        measured.exit_code = process.wait()
        ended.set()
        watch.join()


def read_lines(process: "subprocess.Popen[str]", log: Path, measured: Measured, begin: float) -> None:
    """Keep the lines of a batch, count those that matter, and take the times."""
    done, lost, started = Counter[str](), Counter[str](), 0.0
    assert process.stderr is not None
    with log.open("w", encoding="utf-8") as stream:
        for line in process.stderr:
            now = time.monotonic()
            stream.write(f"{now - begin:.2f} {line}")
            stream.flush()
            if line.startswith("0 of ") and not started:
                started = now
                measured.startup = now - begin
            if match := DONE.match(line):
                done[match[1]] += 1
                measured.seconds = now - started
            if match := LOST.match(line):
                lost[match[1]] += 1
    measured.done, measured.lost = dict(done), dict(lost)


def watch_workers(pid: int, measured: Measured, given: argparse.Namespace, ended: threading.Event) -> None:
    """Sample the memory, and kill processes that make an asset at random times."""
    chance = random.Random(given.seed)
    limit = given.assets // 4 if given.kills is None else given.kills
    due = time.monotonic() + chance.expovariate(1 / given.kill_every)
    used: dict[tuple[int, float], float] = {}
    while not ended.wait(0.3):
        measured.peak_gb = max(measured.peak_gb, sampled(pid, used) / 1e9)
        measured.processor = sum(used.values())
        if measured.part != "kills" or measured.kills >= limit or time.monotonic() < due:
            continue
        if found := workers(pid):
            chance.choice(found).send_signal(signal.SIGKILL)
            measured.kills += 1
            due = time.monotonic() + chance.expovariate(1 / given.kill_every)


def workers(pid: int) -> list[psutil.Process]:
    """The processes below another one that make an asset now."""
    found = []
    for process in descendants(pid):
        try:
            if process.cmdline()[0].startswith(WORKER):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return sorted(found, key=lambda process: process.pid)


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below another one; none where it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def sampled(pid: int, used: dict[tuple[int, float], float]) -> float:
    """Resident bytes of all processes below one; memory that they share is counted several times.

    Args:
        pid: of the process.
        used: receives the seconds of the processor of each, by its id and the time of its begin.
    """
    total = 0.0
    for process in descendants(pid):
        try:
            with process.oneshot():
                times = process.cpu_times()
                used[process.pid, process.create_time()] = times.user + times.system
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def faults(out: Path, names: Sequence[str], measured: Measured) -> Iterator[str]:
    """What is missing, twice, or too much in a batch's folder."""
    if measured.exit_code:
        yield f"exit code {measured.exit_code}"
    entries = Folder(out).read()
    if sorted(entries) != sorted(names):
        yield f"records of other jobs: {sorted(set(entries) ^ set(names))}"
    for name in names:
        if measured.done.get(name, 0) != 1:
            yield f"{name}: {measured.done.get(name, 0)} lines that it is done"
        if name not in entries or entries[name].state != "done":
            yield f"{name}: not done"
        else:
            yield from asset_faults(out / name, Path(entries[name].asset).name)
    if extra := {path.name for path in out.iterdir()} - {*names, *KEPT}:
        yield f"other files: {sorted(extra)}"


def asset_faults(run: Path, asset: str) -> Iterator[str]:
    """What is wrong with the asset of a run."""
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    if manifest["status"] != "done":
        yield f"{run.name}: its run is {manifest['status']}"
    if manifest["files"].get(asset) != sha256(run / asset):
        yield f"{run.name}: its asset is not that of its manifest"
    found = [path.name for path in run.glob(f"asset*{Path(asset).suffix}")]
    if found != [asset]:
        yield f"{run.name}: assets {found}"


def differing(first: Path, second: Path) -> list[str]:
    """Assets that two batches made with other bytes."""
    known, found = Folder(first).read(), []
    for name, entry in Folder(second).read().items():
        if name in known and known[name].state == entry.state == "done":
            file = Path(entry.asset).name
            if sha256(first / name / file) != sha256(second / name / file):
                found.append(f"{name}: other bytes than in {first.name}")
    return found


def rate(rows: Sequence[Measured], part: str) -> float:
    """Assets a minute of all repetitions of a part; 0 where there is none."""
    own = [row for row in rows if row.part == part and row.seconds]
    return 60 * sum(row.assets for row in own) / sum(row.seconds for row in own) if own else 0.0


def thrift(rows: Sequence[Measured], part: str) -> float:
    """Assets a second of the processor, likewise; it hardly depends on other programs."""
    own = [row for row in rows if row.part == part and row.processor]
    return sum(row.assets for row in own) / sum(row.processor for row in own) if own else 0.0


def print_table(rows: Sequence[Measured], cards: int) -> None:
    """The batches, and how much of the ideal Ray reaches."""
    print(
        "| part | jobs at once | assets | seconds | assets a minute | startup s | kills | peak GB | faults |"
    )
    print("|---" * 10 + "|")
    for row in rows:
        print(
            f"| {row.folder} | {row.jobs} | {row.assets} | {row.seconds:.1f} | {row.rate:.2f} "
            f"| {row.processor:.0f} | {row.startup:.1f} | {row.kills} | {row.peak_gb:.1f} "
            f"| {len(row.faults)} |"
        )
    for what, measure in (("assets a minute", rate), ("assets a processor's second", thrift)):
        loop, ray = measure(rows, "loop"), measure(rows, "ray")
        if loop and ray:
            print(f"{what}: Ray reaches {ray / (loop * (cards if measure is rate else 1)):.0%} of the ideal")
    for row in rows:
        if row.lost:
            print(f"{row.folder}: {sum(row.lost.values())} workers were lost, of {len(row.lost)} jobs")
        for fault in row.faults:
            print(f"{row.folder}: {fault}")


if __name__ == "__main__":
    sys.exit(main())
