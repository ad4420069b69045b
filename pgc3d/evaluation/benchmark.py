"""A benchmark: find or generate the results of every item, measure them, write numbers and a table.

OUT holds

    results.json                    protocol, summary, and a record for each result
    table.md                        means with intervals
    records/METHOD/ITEM-SEED.json   finished measurements; reused while nothing that they depend on changes
    baselines/METHOD/ITEM.glb       the meshes of the baselines
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pgc3d
from pgc3d import pipeline
from pgc3d.cameras import reference_view
from pgc3d.choices import Baseline
from pgc3d.config import Config
from pgc3d.disk import write_files, writing
from pgc3d.errors import InputError
from pgc3d.evaluation.baselines import extrude, read_rgba
from pgc3d.evaluation.items import Item
from pgc3d.evaluation.measure import Measure, Result, record_key, score
from pgc3d.evaluation.processes import in_processes
from pgc3d.evaluation.results import Record, from_json, table, to_json, write_results
from pgc3d.events import EventCallback
from pgc3d.mesh_io.mesh_file import WRITABLE, write_mesh
from pgc3d.run_directory import RunDirectory
from pgc3d.signals import stop_on_signals
from pgc3d.task import Task
from pgc3d.view_config import ViewConfig

Maker = Callable[
    [Item, int, Path], None
]  # generates an item with a seed; writes asset.FORMAT into the folder
Notify = Callable[[str], None]


def evaluate(
    items: Sequence[Item],
    folders: Sequence[Path],
    *,
    out: Path,
    measure: Measure,
    baselines: Sequence[Baseline] = (),
    jobs: int = 1,
    notify: Notify,
) -> list[Record]:
    """Measure the results of all methods and write `out`.

    Args:
        items: of the benchmark; the texts of the other items are distractors in retrieval.
        folders: one for each method, named like it, with NAME[-SEED].FORMAT or NAME[-SEED]/asset.FORMAT.
        out: folder for the numbers; records in it are used again where nothing changed.
        measure: protocol and models.
        baselines: further methods, whose meshes are made here from the inputs of image items.
        jobs: number of parallel processes.
        notify: receives a line for every result.

    Returns:
        A record for every result.

    Raises:
        InputError: there is nothing to measure, two folders have one name, or the frame is to be shared with
            an item that has none.
    """
    _require_frame(items, measure)
    methods = [folder.resolve().name for folder in folders] + list(baselines)
    if len(set(methods)) < len(methods):
        raise InputError(f"every method must have a name of its own, got {', '.join(methods)}")
    results = [result for folder in folders for result in find_results(folder, items)]
    results += [result for name in baselines for result in _write_baseline(items, name, out, measure)]
    for folder in folders:
        _notify_missing(folder, items, results, notify)
    if not results:
        raise InputError(
            f"there must be results to measure, got none of {len(items)} items in "
            f"{', '.join(map(str, folders)) or 'no folder'}; name them ITEM.glb or ITEM-SEED/asset.glb"
        )
    records_folder = out / "records"
    with writing(records_folder):  # before anything is measured
        records_folder.mkdir(parents=True, exist_ok=True)
    if measure.retriever is None:
        notify("r_precision is left out: it needs a contrastive model (--retriever FOLDER)")
    texts = dict.fromkeys(item.description for item in items if item.description)
    measure = replace(measure, distractors=(*texts, *measure.distractors))
    records = list(_measured(results, measure, records_folder, jobs, notify))
    facts = asdict(measure.protocol) | {"pgc3d": pgc3d.__version__, "items": len(items)}
    write_results(out / "results.json", records, facts)
    write_files({out / "table.md": (table(records, measure.protocol.frame) + "\n").encode()})
    return records


def _require_frame(items: Sequence[Item], measure: Measure) -> None:
    outside = [item.name for item in items if item.frame != "input"]
    if measure.protocol.frame == "shared" and outside:
        raise InputError(
            'for the shared frame every item must have "frame": "input", as lists of image items written by '
            f"pgc3d's scripts have, but {len(outside)} of {len(items)} have not: {', '.join(outside[:3])}; "
            "use --frame own"
        )


def find_results(folder: Path, items: Sequence[Item]) -> list[Result]:
    """Mesh files of a method's folder by item and seed; one without a number has seed 0.

    Raises:
        InputError: the folder does not exist, or a result is there twice.
    """
    if not folder.is_dir():
        raise InputError(f"results must lie in a folder, got none at {folder}")
    by_name = {item.name: item for item in items}
    meshes: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.iterdir()):
        stem = path.stem if path.suffix.removeprefix(".") in WRITABLE and path.is_file() else path.name
        mesh = path if path.is_file() else _asset(path)
        name, seed = (stem, 0) if stem in by_name else _split(stem)
        if name not in by_name or mesh is None or (path.is_file() and stem == path.name):
            continue
        if (name, seed) in meshes:
            raise InputError(f"a result must be there once, got {meshes[name, seed]} and {mesh}")
        meshes[name, seed] = mesh
    method = folder.resolve().name
    return [Result(method, by_name[name], seed, mesh) for (name, seed), mesh in meshes.items()]


def _split(stem: str) -> tuple[str, int]:
    name, _, seed = stem.rpartition("-")
    return (name, int(seed)) if seed.isascii() and seed.isdigit() else (stem, 0)


def _asset(folder: Path) -> Path | None:
    paths = [folder / f"asset.{suffix}" for suffix in WRITABLE]
    return next((path for path in paths if path.is_file()), None)


def make_missing(
    items: Sequence[Item],
    folders: Sequence[Path],
    make: Maker,
    *,
    seeds: Sequence[int],
    jobs: int = 1,
    notify: Notify,
) -> None:
    """Generate the results that are missing in the first folder, each in ITEM-SEED.

    With more than one of the `jobs`, `make` is pickled, see `in_processes`.

    Raises:
        InputError: there is no folder.
    """
    if not folders:
        raise InputError("a FOLDER for the results must be given where some are to be made, got none")
    folder = folders[0]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    present = {(result.item.name, result.seed) for result in find_results(folder, items)}
    todo = {
        (item.name, seed): (item, seed, folder / f"{item.name}-{seed}")
        for item in items
        for seed in seeds
        if (item.name, seed) not in present
    }
    notify(f"{len(todo)} of {len(items) * len(seeds)} results to make")
    for (name, seed), _ in in_processes(make, todo, processes=jobs):
        notify(f"made {name}, seed {seed}")


def make_item(
    item: Item, seed: int, folder: Path, *, configured: Callable[[Item], Config], on_event: EventCallback
) -> None:
    """Generate an item from its prompt or its image; a run that was stopped is resumed.

    Raises:
        KeyboardInterrupt: a signal stopped it, after it saved.
    """
    with stop_on_signals() as stop:
        if RunDirectory(folder).has_begun():
            result = pipeline.resume(folder, on_event=on_event, stop=stop)
        else:
            config = configured(item)
            seeded = replace(config, run=replace(config.run, seed=seed))
            task = task_of(item, config)
            result = pipeline.generate(task, out=folder, config=seeded, on_event=on_event, stop=stop)
    if result.stopped_by is not None:
        raise KeyboardInterrupt


def task_of(item: Item, config: Config) -> Task:
    """The task of an item; its caption is the prompt where a configuration needs one beside the image."""
    if item.image is None:
        return Task(item.prompt or "")
    return Task(item.caption if config.requires().prompt else "", image=item.image)


def _notify_missing(folder: Path, items: Sequence[Item], results: Sequence[Result], notify: Notify) -> None:
    method = folder.resolve().name
    present = {result.item.name for result in results if result.method == method}
    missing = [item.name for item in items if item.name not in present]
    if missing:
        notify(f"{method} has no result of {len(missing)} of {len(items)} items: {', '.join(missing)}")


def _write_baseline(items: Sequence[Item], name: Baseline, out: Path, measure: Measure) -> Iterator[Result]:
    folder = out / "baselines" / name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        if item.image is not None:
            path = folder / f"{item.name}.glb"
            view = ViewConfig(elevation_degrees=item.elevation_degrees)
            framed = item.frame == "input"
            camera = reference_view(view) if framed else measure.protocol.input_camera(view.elevation_degrees)
            write_mesh(path, extrude(read_rgba(item.image), camera, name), "glb")
            yield Result(name, item, 0, path)


def _measured(
    results: Sequence[Result], measure: Measure, folder: Path, jobs: int, notify: Notify
) -> Iterator[Record]:
    """Records in the order of the results; those that are already on the disk are read."""
    done: dict[int, Record] = {}
    todo = {}
    for number, result in enumerate(results):
        key = record_key(result, measure)
        record = _stored(_record_path(folder, result))
        if record is not None and record.key == key:
            done[number] = record
        else:
            todo[number] = (result, measure, key)
    notify(f"{len(results)} results, {len(todo)} to measure")
    for number, record in in_processes(score, todo, processes=jobs):
        path = _record_path(folder, results[number])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_files({path: (json.dumps(to_json(record), indent=1) + "\n").encode()})
        done[number] = record
        psnr = record.metrics.get("psnr")
        what = record.error or ("measured" if psnr is None else f"PSNR {psnr:.2f} dB")
        notify(f"{record.method} {record.item} seed {record.seed}: {what}")
    return (done[number] for number in range(len(results)))


def _record_path(folder: Path, result: Result) -> Path:
    return folder / result.method / f"{result.item.name}-{result.seed}.json"


def _stored(path: Path) -> Record | None:
    """A record on the disk; one that is damaged is measured again."""
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, InputError):
        return None
