"""Paint three procedural meshes and lay six views of every exported GLB out in one picture.

    python scripts/make_texture_sheet.py RUNS assets/texturing.png --quality draft

The meshes are made here, in files as others would hand them over: a closed barrel with its own texture
coordinates (GLB), a vase that is open on top and has none (PLY), and a chair that stands along the z axis
(STL).
Runs that are finished already are not repeated.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image

from pgc3d.export.mesh_file import read_mesh
from pgc3d.export.roundtrip import comparison_views, render_asset
from pgc3d.export.turntable import tile, to_bytes
from pgc3d.geometry.placement import place
from pgc3d.render import build_rasterizer

SEGMENTS = 48


def revolve(radius: Any, height: Any) -> tuple[Any, Any, Any]:
    """A surface around the y axis with texture coordinates (angle, height); its seam has two columns."""
    angle = np.linspace(0, 2 * np.pi, SEGMENTS + 1)
    rows = len(radius)
    x, z = np.outer(radius, np.sin(angle)), np.outer(radius, np.cos(angle))
    vertices = np.stack([x, np.broadcast_to(np.array(height)[:, None], x.shape), z], axis=-1).reshape(-1, 3)
    across, along = np.meshgrid(angle / (2 * np.pi), np.linspace(0, 1, rows))
    index = np.arange(vertices.shape[0]).reshape(rows, -1)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return vertices, faces, np.stack([across, along], axis=-1).reshape(-1, 2)


def barrel(path: Path) -> None:
    """Closed, with texture coordinates."""
    height = np.linspace(-1, 1, 17)
    radius = np.concatenate([[1e-3], 0.75 - 0.2 * height**2, [1e-3]])
    vertices, faces, uv = revolve(radius, np.concatenate([[-1], height, [1]]))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    mesh.visual = trimesh.visual.TextureVisuals(uv=0.02 + 0.96 * uv)
    mesh.export(path)


def vase(path: Path) -> None:
    """Open on top, without texture coordinates."""
    height = np.linspace(0, 30, 25)
    radius = 8 + 4 * np.sin(height / 5) - height / 10
    vertices, faces, _ = revolve(np.concatenate([[0.0], radius]), np.concatenate([[0.0], height]))
    trimesh.Trimesh(vertices, faces, process=True).export(path)


def chair(path: Path) -> None:
    """Stands along z and looks along -y, in millimetres."""
    parts = [((460, 440, 50), (0, 0, 450)), ((460, 50, 480), (0, 195, 700))]
    parts += [((45, 45, 430), (x, y, 215)) for x in (-200, 200) for y in (-190, 190)]
    boxes = [trimesh.creation.box(size, trimesh.transformations.translation_matrix(at)) for size, at in parts]
    trimesh.util.concatenate(boxes).export(path)


JOBS: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "barrel.glb": (barrel, "a wooden barrel", []),
    "vase.ply": (vase, "a blue vase", []),
    "chair.stl": (chair, "a red chair", ["--up", "+z"]),
}


def run(folder: Path, name: str, options: list[str]) -> Path:
    """Paint one mesh through the command line, as a user would."""
    make, prompt, axes = JOBS[name]
    folder.mkdir(parents=True, exist_ok=True)
    make(folder / name)
    out = folder / Path(name).stem
    manifest = out / "manifest.json"
    if manifest.is_file() and json.loads(manifest.read_text())["status"] == "done":
        return out
    command = [sys.executable, "-m", "pgc3d", "texture", str(folder / name), prompt, "--out", str(out)]
    subprocess.run([*command, *axes, *options], check=True)
    return out


def views(out: Path, name: str) -> torch.Tensor:
    """Six views of the exported file, read back; the file's axes are turned into the world for that."""
    asset = read_mesh(out / "asset.glb")
    axes = JOBS[name][2]
    placement = place(asset.vertices, asset.faces, up=axes[1] if axes else "+y", front="auto")
    asset = type(asset)(**{**vars(asset), "vertices": placement.to_world(asset.vertices)})
    cameras, background = comparison_views()
    rasterizer = build_rasterizer("auto", torch.device("cpu"))
    return to_bytes(render_asset(asset, cameras, 256, background=background, rasterizer=rasterizer).color)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--quality", default="standard")
    parser.add_argument("--only", nargs="*", default=list(JOBS))
    arguments = parser.parse_args()
    pictures, labels = [], []
    for name in arguments.only:
        out = run(arguments.runs, name, ["--quality", arguments.quality])
        shots = list(views(out, name))
        pictures += shots
        labels += [f"{JOBS[name][1]} ({name})", *[""] * (len(shots) - 1)]
    Image.fromarray(tile(pictures, 6, labels).numpy()).save(arguments.sheet)


if __name__ == "__main__":
    main()
