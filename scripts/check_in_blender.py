"""Open exported meshes in Blender: what it finds in them, and how well its render matches ours.

    python scripts/check_in_blender.py FILE... --blender PYTHON [--out FOLDER]

PYTHON is one with the package `bpy` (`python -m venv blender; blender/bin/pip install bpy`), which is under
the GPL, so that pgc3d does not depend on it. Every file is rendered unlit from the same camera by both. The
output is the PSNR over the pixels that either covers, and what Blender counts; the exit code is 1 where it is
below --least. Both renders and their difference go to --out.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pgc3d.cameras import turntable
from pgc3d.exporting.roundtrip import render_asset
from pgc3d.exporting.turntable import tile
from pgc3d.geometry.placement import place
from pgc3d.images import psnr, to_bytes
from pgc3d.mesh_io.gltf_writer import pack_glb, unpack_glb
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.rendering import build_rasterizer
from pgc3d.types import Cameras, Placement

# Blender's importers turn y up to z up: its world from that of glTF.
Z_UP = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
SAMPLES = 64  # per pixel


@dataclass(frozen=True)
class Comparison:
    """A file in Blender and here."""

    file: Path
    psnr: float  # dB
    counts: dict[str, int]
    images: tuple[UInt8[Tensor, "S S 3"], UInt8[Tensor, "S S 3"]]  # ours, Blender's


def compare(file: Path, python: str, *, side: int = 384, view: int = 1) -> Comparison:
    """Render a file here and in Blender, from the camera `view` of twelve around it.

    Args:
        file: a GLB, glTF, OBJ or USDZ.
        python: the interpreter with `bpy`.
        side: of the images in pixels.
        view: 0 is the front.

    Raises:
        RuntimeError: Blender failed.
    """
    asset = read_mesh(file)
    placement = place(asset.vertices, asset.faces, up="+y", front="+z")
    camera, white = turntable(12)[view : view + 1], torch.ones(1, 3)
    upright = replace(asset, vertices=placement.to_world(asset.vertices))
    rendering = render_asset(
        upright, camera, side, background=white,
        rasterizer=build_rasterizer("cpu", torch.device("cpu")), shading=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        job = _job(file, camera, placement, side) | {
            "shown": str(_still(file, Path(folder)).absolute()),
            "image": str(Path(folder) / "render.png"),
            "counts": str(Path(folder) / "counts.json"),
        }
        (Path(folder) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        script = Path(__file__).with_name("blender_scene.py")
        command = [python, str(script), str(Path(folder) / "job.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not Path(job["counts"]).is_file():
            raise RuntimeError(f"Blender must open {file}, got: {done.stdout[-500:]}{done.stderr[-2000:]}")
        with Image.open(job["image"]) as image:
            theirs = _pixels(image)
        counts = json.loads(Path(job["counts"]).read_text(encoding="utf-8"))
    ours = rendering.color
    covered = (rendering.alpha > 0) | (theirs < 1).any(dim=-1, keepdim=True)
    found = psnr(ours, theirs, covered).item()
    return Comparison(file, found, counts, (to_bytes(ours[0]), to_bytes(theirs[0])))


def _still(file: Path, folder: Path) -> Path:
    """The file, of a GLB a copy without animations, whose first frame Blender would show."""
    if file.suffix != ".glb":
        return file
    document, binary = unpack_glb(file.read_bytes())
    if not document.pop("animations", None):
        return file
    still = folder / "still.glb"
    still.write_bytes(pack_glb(document, binary))
    return still


def _pixels(image: Image.Image) -> Float[Tensor, "1 S S 3"]:
    data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(1, image.height, image.width, 3).float() / 255


def _job(file: Path, camera: Cameras, placement: Placement, side: int) -> dict[str, Any]:
    """The description of the scene for `blender_scene.py`; the camera goes to the file's coordinates."""
    matrix = camera.camera_from_world[0].double()
    turn = placement.rotation.double().T
    rotation = Z_UP @ turn @ matrix[:3, :3].T
    position = turn @ camera.position[0].double() / placement.scale + placement.centre.double()
    whole = torch.eye(4, dtype=torch.float64)
    whole[:3, :3], whole[:3, 3] = rotation, Z_UP @ position
    distance = float(camera.distance[0])
    return {
        "file": str(file.absolute()),
        "matrix": whole.tolist(),
        "fovy": 2 * math.atan(1 / float(camera.clip_from_camera[0, 1, 1])),
        "near": 0.1 * (distance - 1) / placement.scale,
        "far": 2 * (distance + 1) / placement.scale,
        "side": side,
        "samples": SAMPLES,
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    """Compare the files of the command line; 1 where one differs."""
    parser = argparse.ArgumentParser(description="Open exported meshes in Blender and compare the renders")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--blender", default=sys.executable, metavar="PYTHON", help="a Python with bpy")
    parser.add_argument("--out", type=Path, help="folder for images")
    parser.add_argument("--side", type=int, default=384, help="of the renders in pixels")
    parser.add_argument("--view", type=int, default=1, help="of twelve around the object")
    parser.add_argument("--least", type=float, default=25.0, help="PSNR in dB")
    arguments = parser.parse_args()
    worst = math.inf
    for file in arguments.files:
        found = compare(file, arguments.blender, side=arguments.side, view=arguments.view)
        worst = min(worst, found.psnr)
        counts = ", ".join(f"{number} {name}" for name, number in found.counts.items())
        print(f"{file}: {found.psnr:.1f} dB; {counts}", flush=True)
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
            ours, theirs = found.images
            difference = 255 - (ours.int() - theirs.int()).abs().mul(4).clamp(max=255).to(torch.uint8)
            sheet = tile([ours, theirs, difference], 3, ["pgc3d", "Blender", "difference x 4"])
            name = f"{file.parent.name}_{file.name}.png"
            Image.fromarray(sheet.numpy()).save(arguments.out / name)
    return int(worst < arguments.least)


if __name__ == "__main__":
    sys.exit(main())
