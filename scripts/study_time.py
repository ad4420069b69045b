"""Time to quality: meshes textured by the bundled prior with few and with many images, under many arms.

    python scripts/mini/make_benchmark.py DATASET BENCHMARK
    python scripts/study_time.py BENCHMARK/items.jsonl OUT --device cuda --jobs 14
    python scripts/study_time.py BENCHMARK/items.jsonl OUT --arms none,0.1,relative --budgets 80,160 --count 4
    python scripts/study_time.py BENCHMARK/items.jsonl OUT --summary

An arm is a clipping rule of `pgc3d ablate`, and behind plus signs what else it changes of the preset
`texture-mini` with timesteps up to 0.98 and at the end to 0.4: `rate=F` (all learning rates times F),
`scale=S` (guidance scale), `annealed` and `level` (timesteps that fall; all images of a step at one
timestep), `t=T` (largest timestep from the fraction T to 0.05), `csd`, `nfsd`, `x0` (the score),
`linear=FILE` (gradients through a linear encoder for the first 70 %), `pixels=N` (one render resolution),
`views=N` (of a step), `finest=N` (cells of the colour field's finest level), `sync` (initial views that are
sampled together).
Schedules are stretched over each budget, so that every budget is a run of its own.

OUT/results.jsonl grows by a line with every run; runs that are in it are not repeated. OUT/summary.md has
the curves of quality against images, and T90: the images with which an arm reaches 90 % of what the first
arm gains over the grey mesh with its largest budget, with 95 % bootstrap intervals over meshes, and how many
times those of the first arm they are; and differences to no clipping, or to what --against names.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from study_clipping import work_off
from study_summary import read_results
from time_jobs import GRAY, Job, Settings, draw, fingerprint, make_jobs, run_job
from time_summary import UNCLIPPED, summarize

from pgc3d.disk import replace_file
from pgc3d.errors import Pgc3dError
from pgc3d.evaluation.items import Item, read_items

ARMS = (
    "0.1", "none", "1", "relative", "adaptive",
    "0.1+rate=2", "none+rate=2", "1+rate=2", "relative+rate=2",
    "0.1+rate=3", "none+rate=3", "1+rate=3", "relative+rate=3",
    "0.1+annealed", "0.1+level", "0.1+csd", "0.1+nfsd", "0.1+x0", "0.1+scale=10", "0.1+pixels=256",
)  # fmt: skip
BUDGETS = (40, 80, 160, 320, 600)


def require_same_settings(jobs: Sequence[Job], results: Path, settings: Settings) -> None:
    """Check that the lines that are there come from the settings of the command line."""
    expected = {(job.arm, job.images): job for job in jobs}
    known = {key: fingerprint(job, settings) for key, job in expected.items()}
    for line in read_results(results):
        if line["settings"] != known.get((line["arm"], line["images"]), line["settings"]):
            raise SystemExit(
                f"error: {results} must hold runs with these settings, but those of {line['arm']} were made "
                "with others, or the preset has changed; use another OUT"
            )


def run(settings: Settings, jobs: Sequence[Job], *, processes: int) -> None:
    """Draw the prior's images that are missing, and run the jobs that have no line yet."""
    (settings.out / "views").mkdir(parents=True, exist_ok=True)
    results = settings.out / "results.jsonl"
    require_same_settings(jobs, results, settings)
    for item in settings.captions:
        if not settings.drawn(item).exists():
            draw(item, settings)
    gray = [Job(item, GRAY, 0, 0) for item in settings.captions]
    work_off([*gray, *jobs], results, partial(run_job, settings=settings), processes=processes)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("items", type=Path, nargs="+", help="lists of benchmarks; the last one is OUT")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="images of a run")
    parser.add_argument("--count", type=int, default=24, help="meshes, in equal parts of each list")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, on one device")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--samples", type=int, default=4, help="images of the prior for each view")
    parser.add_argument("--sampling-steps", type=int, default=30)
    parser.add_argument("--set", action="append", dest="overrides", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--against", default=UNCLIPPED, metavar="RULE or ARM:IMAGES",
        help="what paired differences are to: a rule with each arm's own variants and images, or one arm",
    )  # fmt: skip
    parser.add_argument("--summary", action="store_true", help="run nothing")
    return parser.parse_args()


def choose(lists: Sequence[Path], count: int) -> list[Item]:
    """Items with a truth and a caption, evenly spread over each list."""
    found: list[Item] = []
    for place, path in enumerate(lists):
        share = count * (place + 1) // len(lists) - count * place // len(lists)
        own = [item for item in read_items(path) if item.truth is not None and item.caption]
        share = min(share, len(own))
        found += [own[len(own) * index // share] for index in range(share)]
    names = [item.name for item in found]
    # Runs are known by the names of their items, which lists may share.
    return [
        replace(item, name=f"{item.name}.{place}") if item.name in names[:place] else item
        for place, item in enumerate(found)
    ]


def main() -> None:
    """Command line."""
    arguments = parse_arguments()
    *lists, out = arguments.items
    arms, budgets = arguments.arms.split(","), sorted(int(part) for part in arguments.budgets.split(","))
    if not arguments.summary:
        items = choose(lists, arguments.count)
        settings = Settings(
            out=out.absolute(), device=arguments.device, samples=arguments.samples,
            meshes={item.name: item.truth for item in items if item.truth is not None},
            captions={item.name: item.caption for item in items},
            sampling_steps=arguments.sampling_steps, overrides=tuple(arguments.overrides),
        )  # fmt: skip
        jobs = make_jobs(list(settings.captions), arms, budgets, arguments.seeds)
        try:
            run(settings, jobs, processes=arguments.jobs)
        except Pgc3dError as error:
            raise SystemExit(f"error: {error}") from error
    lines = read_results(out / "results.jsonl")
    if not lines:
        raise SystemExit(f"{out} must have results to sum up, got none")
    text = summarize(lines, arms, budgets, arguments.against)
    replace_file(out / "summary.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
