"""Check all presets with real weights in at most 60 minutes on an H100, and pack one file to send back.

    python scripts/acceptance.py --models hub --out acceptance           # models of the hub, fetched first
    python scripts/acceptance.py --models MODELS --out acceptance        # MODELS/sdxl, MODELS/zero123, ...
    python scripts/acceptance.py --models MODELS --out acceptance --only clip refine-sdxl
    python scripts/acceptance.py --models mini --steps-scale 0.05 --out trial    # the script itself, on a CPU

A part is a process of its own; one that fails does not stop the others. OUT/parts/NAME has its result, its
images, its log and its run. A second call goes on where the first stopped: parts that are done are kept,
those that ended with an error, or were not run, run again, and a run that was interrupted is resumed. Parts
whose model is missing are "not run". The end of every call writes

    OUT/acceptance.json    all numbers, hashes, expectations and verdicts
    OUT/acceptance.html    the same for people, with the images; one file without network
    OUT/acceptance.zip     both, with the images, logs and records of all parts: the file to send back

The exit code is 1 where a needed part failed. The expectations are in acceptance_expected.py.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acceptance_parts import MINUTES, PARTS, Part, aliases_of, choose
from acceptance_report import plain, summarize, table, write_report
from acceptance_runs import Trial
from acceptance_weights import USED, Weights, is_half, write_tiny

from pgc3d.build.run import resolve_device
from pgc3d.disk import replace_file
from pgc3d.errors import Pgc3dError

RESULT, SETTINGS = "result.json", "settings.json"
GRACE = 90.0  # seconds in which an interrupted part saves its run
SHARED_SETTINGS = ("models", "random", "tiny", "device", "steps_scale", "seed")
Launch = Callable[[Part, Trial, float], None]  # the last is the limit in seconds


@dataclass(frozen=True)
class Clock:
    """The time of one call."""

    start: float
    minutes: float

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.minutes - (time.monotonic() - self.start)


def folder_of(part: Part, trial: Trial) -> Path:
    """Where a part writes."""
    return trial.out / "parts" / part.name


def read_result(part: Part, trial: Trial) -> dict[str, Any]:
    """What is recorded of a part; nothing where it is damaged or missing."""
    try:
        content = json.loads((folder_of(part, trial) / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_result(part: Part, trial: Trial, *, state: str, **content: Any) -> None:
    """Record a part; its state is "done", "error" or "not run"."""
    folder = folder_of(part, trial)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"part": part.name, "state": state, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
    replace_file(folder / RESULT, (json.dumps(plain(record | content), indent=1) + "\n").encode())


def execute(part: Part, trial: Trial) -> None:
    """Do a part in this process, and record what it found or why it failed."""
    folder = folder_of(part, trial)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        outcome = part.work(trial, folder)
    except Exception as error:
        traceback.print_exc()
        reason = str(error) if isinstance(error, Pgc3dError) else f"{type(error).__name__}: {error}"
        write_result(part, trial, state="error", reason=reason, seconds=time.perf_counter() - start)
        return
    seconds = time.perf_counter() - start
    write_result(part, trial, state="done", seconds=seconds, numbers=outcome.numbers, facts=outcome.facts)


def in_a_process(part: Part, trial: Trial, limit: float, *, arguments: Sequence[str]) -> None:
    """Do a part in a process of its own, for at most so many seconds, and record how that ended."""
    folder = folder_of(part, trial)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--worker", part.name]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _interrupt(process)
            write_result(part, trial, state="not run", reason="its time was used up; call again to go on")
            return
        except KeyboardInterrupt:
            _interrupt(process)
            write_result(part, trial, state="not run", reason="interrupted; call again to go on")
            raise
    if not read_result(part, trial):
        reason = f"its process ended with exit code {code}; see {folder / 'log.txt'}"
        write_result(part, trial, state="error", reason=reason)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Let a process save its run, or end it where that takes too long."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_parts(
    parts: Sequence[Part], trial: Trial, problems: Mapping[str, str], launch: Launch, clock: Clock
) -> None:
    """Run the parts that are not done yet, and record those that cannot run.

    Args:
        parts: to run.
        trial: what they share.
        problems: why a model cannot be used, by alias.
        launch: does and records one part within a number of seconds.
        clock: of this call.
    """
    for part in parts:
        if read_result(part, trial).get("state") == "done":
            print(f"{part.name}: done before", flush=True)
            continue
        lacking = [problems[alias] for alias in part.work.aliases if problems.get(alias)]
        if lacking:
            write_result(part, trial, state="not run", reason="; ".join(lacking))
        elif part.minutes * 60 * min(trial.steps_scale, 1.0) > clock.left:
            reason = (
                f"{max(clock.left, 0) / 60:.0f} minutes were left of {clock.minutes:g}; call again to go on"
            )
            write_result(part, trial, state="not run", reason=reason)
        else:
            print(f"{part.name}: begins, about {part.minutes:g} minutes on an H100", flush=True)
            launch(part, trial, clock.left)
        found = read_result(part, trial)
        print(f"{part.name}: {found.get('state', 'error')}  {found.get('reason', '')}", flush=True)


def find_problems(trial: Trial, aliases: Sequence[str]) -> dict[str, str]:
    """Why models cannot be used, by alias; those of the hub are fetched."""
    half = is_half(trial.torch_device)
    problems = {alias: trial.weights.problem(alias, half=half) for alias in aliases}
    folder = trial.weights.folder
    if trial.weights.kind == "folder" and not any((folder / alias).is_dir() for alias in USED):
        raise SystemExit(
            f"error: --models must be hub, mini, or a folder with one of {', '.join(USED)}, got {folder}"
        )
    return {alias: problem for alias, problem in problems.items() if problem}


def require_same_settings(arguments: argparse.Namespace) -> None:
    """Record the settings that all calls share, or check that they are those of the first call."""
    own = {name: str(getattr(arguments, name)) for name in SHARED_SETTINGS}
    path = arguments.out / SETTINGS
    if path.is_file():
        known = json.loads(path.read_text())
        changed = [name for name in own if known.get(name) != own[name]]
        if changed:
            name = changed[0]
            raise SystemExit(
                f"error: {arguments.out} must be continued with the settings of its first call, got --{name} "
                f"{own[name]} instead of {known.get(name)}; use another --out"
            )
    arguments.out.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(own, indent=1) + "\n").encode())


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", help="a folder with a folder for each alias, hub, or mini")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="names or their beginnings")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of one call")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor of all steps, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--random", action="store_true", help="the weights are random: no quality is expected"
    )
    parser.add_argument("--tiny", action="store_true", help="random miniatures, to test the script")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if not arguments.tiny and not arguments.models:
        parser.error("--models must be given")
    if arguments.steps_scale <= 0:
        parser.error(f"--steps-scale must be positive, got {arguments.steps_scale:g}")
    return arguments


def trial_of(arguments: argparse.Namespace) -> Trial:
    """What the command line describes."""
    out = arguments.out.absolute()
    if arguments.tiny:
        weights = Weights("tiny", out / "models", random=True)
    elif arguments.models in {"hub", "mini"}:
        weights = Weights(arguments.models, random=arguments.random)
    else:
        weights = Weights("folder", Path(arguments.models).expanduser().absolute(), random=arguments.random)
    return Trial(weights, out, arguments.device, arguments.steps_scale, arguments.seed)


def main(given: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """Command line; the exit code."""
    arguments = parse(given)
    trial, words = trial_of(arguments), list(sys.argv[1:] if given is None else given)
    if arguments.worker:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
        execute(next(part for part in PARTS if part.name == arguments.worker), trial)
        return 0
    try:
        parts = choose(arguments.only)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    require_same_settings(arguments)
    if arguments.tiny:
        write_tiny(trial.weights.folder)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # so that logs are whole when a process dies
    trial.item()
    problems = find_problems(trial, aliases_of(parts))
    clock = Clock(time.monotonic(), arguments.minutes)
    begin = launch or (lambda part, trial, limit: in_a_process(part, trial, limit, arguments=words))
    try:
        run_parts(parts, trial, problems, begin, clock)
    except KeyboardInterrupt:
        print("interrupted; call again to go on", flush=True)
    results = {part.name: found for part in PARTS if (found := read_result(part, trial))}
    summary = summarize(results, trial, device=_device_name(trial, results))
    archive = write_report(trial.out, summary)
    print(table(summary))
    print(f"send back {archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 1 if summary["failed"] else 0


def _device_name(trial: Trial, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Name of the device that the parts ran on, or of this one."""
    known = results.get("machine", {}).get("facts", {}).get("device", {}).get("name")
    if known:
        return str(known)
    from pgc3d.environment import describe_environment

    return str(describe_environment(resolve_device(trial.device))["device"]["name"])


if __name__ == "__main__":
    sys.exit(main())
