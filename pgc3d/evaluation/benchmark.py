"""Run a benchmark: find or make the results of every item, measure them, write numbers and a table.

OUT/results.json             protocol, summary, and a record for each result
OUT/table.md                 means with intervals
OUT/records/METHOD/ITEM-SEED.json   what is done; not computed again while nothing it depends on changed
OUT/baselines/...            the meshes of the baselines
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import torch

import pgc3d
from pgc3d.errors import InputError, Pgc3dError
from pgc3d.evaluation.alignment import normalize_mesh
from pgc3d.evaluation.baselines import Baseline, extrude, read_picture
from pgc3d.evaluation.items import Item
from pgc3d.evaluation.perceptual import EncoderDistance, load_encoder_distance
from pgc3d.evaluation.protocol import Protocol, compare
from pgc3d.evaluation.render import render_views
from pgc3d.evaluation.results import Record, from_json, table, to_json, write_results
from pgc3d.evaluation.retrieval import Retriever, load_retriever
from pgc3d.export.atomic import write_files
from pgc3d.export.mesh_file import FORMATS, read_mesh, write_mesh
from pgc3d.interfaces import Rasterizer
from pgc3d.mini import text_model
from pgc3d.render import build_rasterizer

Maker = Callable[[Item, int, Path], None]  # makes an item with a seed; leaves asset.FORMAT in the folder
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """A mesh file that is to be measured."""

    method: str
    item: Item
    seed: int
    mesh: Path


@dataclass(frozen=True)
class Measure:
    """How results are measured; can be sent to another process."""

    protocol: Protocol = Protocol()  # noqa: RUF009 - frozen
    device: str = "cpu"
    retriever: Path | None = None  # folder of a contrastive model; None leaves r_precision out
    distractors: tuple[str, ...] = ()  # texts that results are to be told from


def evaluate(
    items: Sequence[Item],
    folders: Sequence[Path],
    *,
    out: Path,
    measure: Measure,
    baselines: Sequence[Baseline] = (),
    jobs: int = 1,
    say: Say,
) -> list[Record]:
    """Measure the results of all methods and write `out`.

    Args:
        items: what there is to make; their texts become distractors of each other.
        folders: one for each method, named like it, with NAME[-SEED].FORMAT or NAME[-SEED]/asset.FORMAT.
        out: folder for the numbers; records in it are used again where nothing changed.
        measure: protocol and models.
        baselines: further methods, made here from the inputs of image items.
        jobs: processes that measure at once.
        say: told about every result.

    Returns:
        A record for every result.

    Raises:
        InputError: there is nothing to measure, or two folders have one name.
    """
    methods = [folder.resolve().name for folder in folders] + list(baselines)
    if len(set(methods)) < len(methods):
        raise InputError(f"every method must have a name of its own, got {', '.join(methods)}")
    results = [result for folder in folders for result in find_results(folder, items)]
    results += [result for name in baselines for result in _write_baseline(items, name, out, measure)]
    for folder in folders:
        _tell_missing(folder, items, results, say)
    if not results:
        raise InputError(
            f"there must be results to measure, found none of {len(items)} items in "
            f"{', '.join(map(str, folders)) or 'no folder'}; name them ITEM.glb or ITEM-SEED/asset.glb"
        )
    if measure.retriever is None:
        say("r_precision is left out: it needs a contrastive model (--retriever FOLDER)")
    texts = dict.fromkeys(item.description for item in items if item.description)
    measure = replace(measure, distractors=(*texts, *measure.distractors))
    records = list(_measured(results, measure, out / "records", jobs, say))
    facts = asdict(measure.protocol) | {"pgc3d": pgc3d.__version__, "items": len(items)}
    write_results(out / "results.json", records, facts)
    write_files({out / "table.md": (table(records) + "\n").encode()})
    return records


def find_results(folder: Path, items: Sequence[Item]) -> list[Result]:
    """Mesh files of a method's folder by item and seed; one without a number has seed 0.

    Raises:
        InputError: the folder does not exist, or a result is there twice.
    """
    if not folder.is_dir():
        raise InputError(f"results must lie in a folder, found none at {folder}")
    by_name = {item.name: item for item in items}
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.iterdir()):
        stem = path.stem if path.suffix.removeprefix(".") in FORMATS and path.is_file() else path.name
        mesh = path if path.is_file() else _asset(path)
        name, seed = (stem, 0) if stem in by_name else _split(stem)
        if name not in by_name or mesh is None or (path.is_file() and stem == path.name):
            continue
        if (name, seed) in found:
            raise InputError(f"a result must be there once, found {found[name, seed]} and {mesh}")
        found[name, seed] = mesh
    method = folder.resolve().name
    return [Result(method, by_name[name], seed, mesh) for (name, seed), mesh in found.items()]


def _split(stem: str) -> tuple[str, int]:
    name, _, seed = stem.rpartition("-")
    return (name, int(seed)) if seed.isascii() and seed.isdigit() else (stem, 0)


def _asset(folder: Path) -> Path | None:
    paths = [folder / f"asset.{suffix}" for suffix in FORMATS]
    return next((path for path in paths if path.is_file()), None)


def make_missing(items: Sequence[Item], folder: Path, make: Maker, *, seeds: int, say: Say) -> None:
    """Make what a folder of results lacks, with the seeds 0 to `seeds` - 1, each in ITEM-SEED."""
    folder.mkdir(parents=True, exist_ok=True)
    present = {(result.item.name, result.seed) for result in find_results(folder, items)}
    for item in items:
        for seed in range(seeds):
            if (item.name, seed) not in present:
                say(f"making {item.name}, seed {seed}")
                make(item, seed, folder / f"{item.name}-{seed}")


def _tell_missing(folder: Path, items: Sequence[Item], results: Sequence[Result], say: Say) -> None:
    method = folder.resolve().name
    present = {result.item.name for result in results if result.method == method}
    missing = [item.name for item in items if item.name not in present]
    if missing:
        say(f"{method} has no result of {len(missing)} of {len(items)} items: {', '.join(missing)}")


def _write_baseline(items: Sequence[Item], name: Baseline, out: Path, measure: Measure) -> Iterator[Result]:
    if name not in get_args(Baseline):
        raise ValueError(f"a baseline must be one of {get_args(Baseline)}, got {name!r}")
    folder = out / "baselines" / name
    folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        if item.image is not None:
            path = folder / f"{item.name}.glb"
            camera = measure.protocol.input_camera(item.elevation_degrees)
            write_mesh(path, extrude(read_picture(item.image), camera, name), "glb")
            yield Result(name, item, 0, path)


def _measured(
    results: Sequence[Result], measure: Measure, folder: Path, jobs: int, say: Say
) -> Iterator[Record]:
    """Records in the order of the results; what is on the disk already is read."""
    done: dict[int, Record] = {}
    todo = {}
    for number, result in enumerate(results):
        key = _key(result, measure)
        record = _stored(_record_path(folder, result))
        if record is not None and record.key == key:
            done[number] = record
        else:
            todo[number] = key
    say(f"{len(results)} results, {len(todo)} to measure")
    for number, record in _scores(results, todo, measure, jobs):
        path = _record_path(folder, results[number])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_files({path: (json.dumps(to_json(record), indent=1) + "\n").encode()})
        done[number] = record
        psnr = record.metrics.get("psnr")
        what = record.error or ("measured" if psnr is None else f"PSNR {psnr:.2f} dB")
        say(f"{record.method} {record.item} seed {record.seed}: {what}")
    return (done[number] for number in range(len(results)))


def _scores(
    results: Sequence[Result], todo: dict[int, str], measure: Measure, jobs: int
) -> Iterator[tuple[int, Record]]:
    if jobs == 1:
        for number, key in todo.items():
            yield number, score(results[number], measure, key)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
        waiting = {pool.submit(score, results[number], measure, key): number for number, key in todo.items()}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def score(result: Result, measure: Measure, key: str = "") -> Record:
    """Measure one result; one that cannot be read or compared becomes a record with the reason."""
    tools = _tools(measure)
    try:
        metrics = _metrics(result, measure, tools)
    except Pgc3dError as error:
        return Record(result.method, result.item.name, result.seed, {}, str(error), key)
    return Record(result.method, result.item.name, result.seed, metrics, key=key)


@dataclass(frozen=True)
class _Tools:
    device: torch.device
    rasterizer: Rasterizer
    distance: EncoderDistance
    retriever: Retriever | None


@lru_cache(maxsize=1)
def _tools(measure: Measure) -> _Tools:
    device = torch.device(measure.device)
    return _Tools(
        device=device,
        rasterizer=build_rasterizer("auto", device),
        distance=load_encoder_distance(text_model(), device),
        retriever=None if measure.retriever is None else load_retriever(measure.retriever, device),
    )


def _metrics(result: Result, measure: Measure, tools: _Tools) -> dict[str, float]:
    mesh, item = read_mesh(result.mesh), result.item
    metrics: dict[str, float] = {}
    if item.truth is not None:
        metrics |= compare(
            mesh, read_mesh(item.truth), measure.protocol,
            rasterizer=tools.rasterizer, distance=tools.distance, device=tools.device,
            input_elevation_degrees=None if item.image is None else item.elevation_degrees,
        )  # fmt: skip
    if item.description and tools.retriever is not None:
        cameras = measure.protocol.novel_cameras().to(tools.device)
        size = measure.protocol.resolution
        images = render_views(normalize_mesh(mesh), cameras, size, rasterizer=tools.rasterizer).color
        metrics["r_precision"] = tools.retriever.r_precision(images, item.description, measure.distractors)
    return metrics


def _record_path(folder: Path, result: Result) -> Path:
    return folder / result.method / f"{result.item.name}-{result.seed}.json"


def _stored(path: Path) -> Record | None:
    """A record on the disk; one that is damaged is measured again."""
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, InputError):
        return None


def _key(result: Result, measure: Measure) -> str:
    """Hash of what the numbers depend on: files, item, protocol, models, version."""
    digest = hashlib.sha256()
    for path in (result.mesh, result.item.truth):
        digest.update(b"" if path is None else path.read_bytes())
    item = {name: value for name, value in asdict(result.item).items() if not isinstance(value, Path)}
    models: dict[str, Any] = {"texts": None}
    if measure.retriever is not None:
        weights = measure.retriever / "model.safetensors"
        models = {"texts": measure.distractors, "retriever": _hash(weights)}
    facts = [item, asdict(measure.protocol), models, pgc3d.__version__]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
