"""Run a list of prompts with fixed seeds and lay six views of every exported GLB out in one image.

    python scripts/make_gallery.py RUNS assets/gallery.png

Runs that are finished already are not repeated, so that a gallery can be made in several sittings.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from pgc3d.exporting.roundtrip import comparison_views, render_asset
from pgc3d.exporting.turntable import tile
from pgc3d.images import to_bytes
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.rendering import build_rasterizer

PROMPTS = ("a red chair", "a blue chair", "a horse", "a yellow car", "a bicycle", "a hamburger",
           "a black grand piano", "a green sofa", "a barrel", "a red fire hydrant", "a teapot",
           "a potted plant", "a purple armchair", "a city bus", "a toilet")  # fmt: skip
SIZE = 160


def run_once(folder: Path, arguments: Sequence[str]) -> None:
    """Make an asset in a folder with a command of pgc3d; what is there stays, what was stopped goes on."""
    if (folder / "asset.glb").exists():
        return
    manifest = folder / "manifest.json"
    begun = manifest.is_file() and json.loads(manifest.read_text())["status"] != "preparing"
    rest = ["resume", str(folder)] if begun else [*arguments, "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "pgc3d", *rest], check=True)


def views(path: Path) -> torch.Tensor:
    """Six images of a mesh file side by side, uint8."""
    device = torch.device("cpu")
    cameras, background = comparison_views(device)
    rendering = render_asset(
        read_mesh(path), cameras, SIZE, background=background, rasterizer=build_rasterizer("cpu", device)
    )
    return to_bytes(torch.cat(list(rendering.color), dim=1))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder for the run directories")
    parser.add_argument("out", type=Path, help="PNG")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt", action="append", help="instead of the built-in list; may be repeated")
    arguments, options = parser.parse_known_args()
    rows, labels = [], []
    for prompt in arguments.prompt or PROMPTS:
        folder = arguments.runs / f"{prompt.replace(' ', '-')}-{arguments.seed}"
        start = time.perf_counter()
        run_once(folder, ["text", prompt, "--guidance", "mini", "--seed", str(arguments.seed), *options])
        seconds = time.perf_counter() - start
        manifest = json.loads((folder / "manifest.json").read_text())
        memory = manifest["peak_memory_bytes"]["resident"] / 1e9
        print(
            f"{prompt}: {seconds:.0f} s in this call, {memory:.2f} GB, parts {manifest['seconds']}",
            flush=True,
        )
        rows.append(views(folder / "asset.glb"))
        labels.append(f"{prompt}, seed {arguments.seed}")
        sheet = tile(rows, 2 if len(rows) > 1 else 1, labels).numpy()
        Image.fromarray(sheet).quantize(256).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
