"""Texture three models of the data set and lay six views of every exported GLB out in one image.

    python scripts/make_texture_sheet.py DATASET RUNS assets/texturing.png

DATASET is what scripts/mini/build_dataset.py writes. The models go into files as others would hand them over:
a horse with its maker's texture coordinates (GLB; B2przemo, CC BY 3.0), an armchair of loose sheets that has
none (PLY; Cris1983, CC0), and a chair that stands along the z axis, in millimetres (STL; JoelEapen, CC0).
Runs that are finished already are not repeated.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from make_gallery import run_once
from PIL import Image

from pgc3d.evaluation.render import render_views
from pgc3d.exporting.roundtrip import comparison_views
from pgc3d.exporting.turntable import tile
from pgc3d.geometry.placement import place
from pgc3d.images import to_bytes
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.rendering import build_rasterizer


def welded(data: Any) -> trimesh.Trimesh:
    """A model with a vertex for every pair of place and texture coordinates."""
    corner, uv = data["faces"].reshape(-1, 1), data["uv"].reshape(-1, 2)
    pairs, index = np.unique(np.concatenate([corner, uv], axis=1), axis=0, return_inverse=True)
    mesh = trimesh.Trimesh(data["vertices"][pairs[:, 0].astype(int)], index.reshape(-1, 3), process=False)
    mesh.visual = trimesh.visual.TextureVisuals(uv=pairs[:, 1:])
    return mesh


def bare(data: Any) -> trimesh.Trimesh:
    """A model's triangles alone."""
    return trimesh.Trimesh(data["vertices"], data["faces"], process=False)


def upright(data: Any) -> trimesh.Trimesh:
    """The same along the z axis, in millimetres."""
    x, y, z = 500 * data["vertices"].T
    return trimesh.Trimesh(np.stack([x, -z, y], axis=1), data["faces"], process=False)


JOBS: dict[str, tuple[str, Callable[[Any], trimesh.Trimesh], str, list[str]]] = {
    "horse.glb": ("Blend Swap CC-BY#horse", welded, "a brown horse", []),
    "armchair.ply": ("Blend Swap CC-0#armchair2", bare, "a red armchair", []),
    "chair.stl": ("Blend Swap CC-0#thonet", upright, "a wooden chair", ["--up", "+z"]),
}


def run(dataset: Path, folder: Path, name: str, options: list[str]) -> Path:
    """Texture one mesh with the command line of pgc3d."""
    model, make, prompt, axes = JOBS[name]
    records = json.loads((dataset / "index.json").read_text())
    record = next(record for record in records if record["id"] == model)
    folder.mkdir(parents=True, exist_ok=True)
    make(np.load(dataset / record["file"])).export(folder / name)
    out = folder / Path(name).stem
    run_once(out, ["texture", str(folder / name), prompt, *axes, *options])
    return out


def views(out: Path, name: str) -> torch.Tensor:
    """Six views of the exported file, its axes rotated into the world."""
    asset = read_mesh(out / "asset.glb")
    axes = JOBS[name][3]
    placement = place(asset.vertices, asset.faces, up=axes[1] if axes else "+y", front="auto")
    vertices = placement.to_world(asset.vertices)
    normals = asset.normals @ placement.rotation.T.to(asset.normals)
    rasterizer = build_rasterizer("auto", torch.device("cpu"))
    standing = replace(asset, vertices=vertices, normals=normals)
    return to_bytes(render_views(standing, comparison_views()[0], 256, rasterizer=rasterizer).color)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--quality", default="standard")
    parser.add_argument("--only", nargs="*", default=list(JOBS))
    arguments = parser.parse_args()
    images, labels = [], []
    for name in arguments.only:
        out = run(arguments.dataset, arguments.runs, name, ["--quality", arguments.quality])
        shots = list(views(out, name))
        images += shots
        labels += [f"{JOBS[name][2]} ({name})", *[""] * (len(shots) - 1)]
    Image.fromarray(tile(images, 6, labels).numpy()).save(arguments.sheet)


if __name__ == "__main__":
    main()
