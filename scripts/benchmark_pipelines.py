"""Every pipeline for a few steps of each stage: time and memory of a step, and resuming in the last stage.

    python scripts/benchmark_pipelines.py OUT --text SD --image ZERO123 --input IMAGE --device cuda
    python scripts/benchmark_pipelines.py OUT --device cpu --steps 2 --pipelines magic3d  # the bundled priors

Time and memory do not depend on the weights, so that checkpoints of `make_random_sd.py` and
`make_random_zero123.py` measure the full sizes. Each run is stopped in the middle of its last stage, resumed
and exported. OUT/pipelines.json has a record of every run, and OUT/pipelines.md the table.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pgc3d import pipeline
from pgc3d.choices import Device, GuidanceName
from pgc3d.config import Config
from pgc3d.disk import replace_file
from pgc3d.errors import Pgc3dError
from pgc3d.events import Event
from pgc3d.pipelines import pipelines
from pgc3d.presets import IMAGE, TEXT, Command, configure
from pgc3d.signals import StopFlag
from pgc3d.task import Task

PROMPT = "a red chair"
WARM = 4  # steps of a stage that are not timed


@dataclass(frozen=True)
class Models:
    """Checkpoints of the guidances; the bundled ones where they are None."""

    text: str | None = None
    image: str | None = None


@dataclass
class Watch:
    """The seconds of each step by stage, and the message of the run's stop in the last stage."""

    last: str  # name of the last stage
    stop: StopFlag
    stop_at: int
    seconds: dict[str, list[float]]
    before: float = 0.0
    stage: str = ""

    def __call__(self, event: Event) -> None:
        """Note a step, and stop the run in the middle of its last stage."""
        if event.report is None:
            return
        now = time.perf_counter()
        if event.stage == self.stage and event.report.step > WARM:
            self.seconds.setdefault(event.stage, []).append(now - self.before)
        self.stage, self.before = event.stage, now
        if event.stage == self.last and event.report.step == self.stop_at:
            self.stop.signal = 2


def configured(command: Command, name: str, models: Models, *, device: Device, steps: int) -> Config:
    """The configuration of a pipeline with at most so many steps in each stage."""
    own = models.text if command is TEXT else models.image
    guidance: GuidanceName = "mini" if own is None else "auto"
    options: dict[str, Any] = {"run": {"device": device}, "logging": {"preview_every": 0, "log_every": 1}}
    if command is IMAGE and models.text is not None:
        options["models"] = {"text": {"name": models.text}}
    prompted = name == "magic123"
    config, _ = configure(
        command, guidance=guidance, model=own, pipeline=name, prompted=prompted, options=options
    )
    stages = {key: replace(stage, steps=min(stage.steps, steps)) for key, stage in config.stages.items()}
    return replace(config, stages=stages)


def measure(config: Config, task: Task, out: Path) -> dict[str, Any]:
    """Run, stop in the last stage, and resume; the record of it."""
    stop, last = StopFlag(), list(config.stages)[-1]
    watch = Watch(last, stop, max(1, config.last.steps // 2), {})
    record: dict[str, Any] = {"stages": list(config.stages), "resumed": False, "error": ""}
    if torch.cuda.is_available():  # the run before had a peak of its own
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    try:
        pipeline.generate(task, out=out, config=config, on_event=watch, stop=stop)
        stop.signal = None
        pipeline.resume(out, on_event=watch)
    except Pgc3dError as error:
        record["error"] = str(error)
    manifest = json.loads((out / "manifest.json").read_text())
    record["resumed"] = manifest["stages"].get(last, {}).get("steps") == config.last.steps
    record["seconds"] = time.perf_counter() - start
    record["step_ms"] = {name: 1000 * median(values) for name, values in watch.seconds.items()}
    record["peak_memory_bytes"] = manifest.get("peak_memory_bytes", {})
    return record


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The records as a table in Markdown."""
    lines = ["| pipeline | ms a step, by stage | peak memory, GB | resumed in its last stage | note |"]
    lines.append("|---|---|---|---|---|")
    for name, record in records.items():
        steps = ", ".join(f"{stage} {value:.0f}" for stage, value in record["step_ms"].items())
        memory = ", ".join(f"{key} {value / 1e9:.1f}" for key, value in record["peak_memory_bytes"].items())
        resumed = "yes" if record["resumed"] else "no"
        lines.append(f"| {name} | {steps} | {memory} | {resumed} | {record['error']} |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", help="a text-to-image checkpoint; the bundled one when not given")
    parser.add_argument("--image", help="a novel-view checkpoint; the bundled one when not given")
    parser.add_argument("--input", type=Path, help="the image of the pipelines that need one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--steps", type=int, default=24, help="at most, of every stage")
    parser.add_argument("--pipelines", help="names, separated by commas; all when not given")
    return parser.parse_args()


def main() -> None:
    """Command line."""
    arguments = parse_arguments()
    models, records = Models(arguments.text, arguments.image), {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = arguments.pipelines.split(",") if arguments.pipelines else None
    for command in (TEXT, IMAGE) if arguments.input else (TEXT,):
        for found in pipelines(command.name):
            if wanted is not None and found.name not in wanted:
                continue
            name = f"{command.name} {found.name}"
            config = configured(command, found.name, models, device=arguments.device, steps=arguments.steps)
            prompt = PROMPT if config.requires().prompt else ""
            task = Task(prompt, image=arguments.input if command is IMAGE else None)
            out = arguments.out / name.replace(" ", "-")
            records[name] = measure(config, task, out) | {"models": asdict(models)}
            print(f"{name}: {records[name]}", flush=True)
            replace_file(arguments.out / "pipelines.json", json.dumps(records, indent=1).encode())
            replace_file(arguments.out / "pipelines.md", table(records).encode())
    print(table(records))


if __name__ == "__main__":
    main()
