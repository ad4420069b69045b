"""All metrics of one result: a mesh file against its item."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import pgc3d
from pgc3d.config import load_config
from pgc3d.disk import sha256
from pgc3d.errors import InputError, Pgc3dError
from pgc3d.evaluation.alignment import normalize_mesh
from pgc3d.evaluation.items import Item
from pgc3d.evaluation.perceptual import EncoderDistance, load_encoder_distance
from pgc3d.evaluation.protocol import Protocol, compare
from pgc3d.evaluation.render import render_views
from pgc3d.evaluation.results import Record
from pgc3d.evaluation.retrieval import Retriever, load_retriever
from pgc3d.image_config import InputImageConfig
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.mesh_io.reader import source_files
from pgc3d.mini import text_model
from pgc3d.rendering import build_rasterizer
from pgc3d.run_files import CONFIG
from pgc3d.view_config import ViewConfig


@dataclass(frozen=True)
class Result:
    """A mesh file to measure, with its method, item and seed."""

    method: str
    item: Item
    seed: int
    mesh: Path


@dataclass(frozen=True)
class Measure:
    """Protocol and models of a measurement; can be pickled."""

    protocol: Protocol = Protocol()  # noqa: RUF009 - frozen
    device: str = "cpu"
    retriever: Path | None = None  # folder of a contrastive model; None leaves r_precision out
    distractors: tuple[str, ...] = ()  # wrong texts of the retrieval metric


def score(result: Result, measure: Measure, key: str = "") -> Record:
    """The record of one result; one that cannot be read or compared has a record with the error."""
    tools = _tools(measure.device, measure.retriever)
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
def _tools(name: str, retriever: Path | None) -> _Tools:
    device = torch.device(name)
    return _Tools(
        device=device,
        rasterizer=build_rasterizer("auto", device),
        distance=load_encoder_distance(text_model(), device),
        retriever=None if retriever is None else load_retriever(retriever, device),
    )


def _metrics(result: Result, measure: Measure, tools: _Tools) -> dict[str, float]:
    if measure.protocol.frame == "shared" and not shares_frame(result.mesh):
        raise InputError(
            "for the shared frame a run must have had pgc3d's default camera and border, but that of "
            f"{result.mesh.parent} had others; use --frame own"
        )
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


def shares_frame(mesh: Path) -> bool:
    """Whether a result is in the frame of `Item.frame`: its run had the default camera and border."""
    path = mesh.parent / CONFIG
    if not path.is_file():
        return True
    config = load_config([path])
    usual = ViewConfig(elevation_degrees=config.view.elevation_degrees)
    return config.view == usual and config.image.border == InputImageConfig().border


def record_key(result: Result, measure: Measure) -> str:
    """Hash of everything that the numbers depend on: files, item, protocol, models, version."""
    digest = hashlib.sha256()
    for path in (result.mesh, result.item.truth):
        for file in () if path is None else source_files(path):
            digest.update(file.read_bytes())
    item = {name: value for name, value in asdict(result.item).items() if not isinstance(value, Path)}
    models: dict[str, Any] = {"vae": _hash(text_model() / "vae"), "texts": None}
    if measure.retriever is not None:
        models |= {"texts": measure.distractors, "retriever": _hash(measure.retriever)}
    facts = [item, asdict(measure.protocol), models, pgc3d.__version__]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _hash(folder: Path) -> str:
    """Hash of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        digest.update(f"{file.name} {sha256(file)} ".encode())
    return digest.hexdigest()
