"""Texture assets of other people and lay two views before and after out in one image.

    python scripts/make_document_sheet.py ASSETS RUNS assets/documents.jpg [--steps 40]

ASSETS holds the files of `JOBS`, as in the repositories named there. Runs that are finished already are not
repeated. What differs between each file and its result is checked by scripts/compare_documents.py.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from compare_documents import is_allowed
from PIL import Image

from pgc3d.cameras import turntable
from pgc3d.evaluation.documents import compare_documents
from pgc3d.evaluation.obj_documents import compare_objs
from pgc3d.evaluation.render import render_views
from pgc3d.exporting.turntable import tile
from pgc3d.geometry.placement import place
from pgc3d.images import to_bytes
from pgc3d.mesh_io.bundle import opened_document
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.rendering import build_rasterizer

SIZE = 144
KAYKIT, KENNEY, SCOPIA = "Kay Lousberg, CC0", "Kenney, CC0", "Scopia, CC BY 3.0"
# the file below ASSETS, the prompt, and the author with the licence
JOBS = {
    "knight": ("kaykit/Characters/gltf/Knight.glb", "a red person", KAYKIT),
    "fox": ("bevy/animated/Fox.glb", "a brown dog", "PixelMannen CC0, tomkranis CC BY 4.0"),
    "morph": ("bevy/animated/MorphStressTest.gltf", "a blue box", "E. Mackey, AGI, CC BY 4.0"),
    "helmet": ("bevy/FlightHelmet/FlightHelmet.gltf", "a red helmet", "Microsoft, CC0"),
    "alien": ("bevy/AlienCake/alien.glb", "a green toy", KENNEY),
    "cake": ("bevy/AlienCake/cakeBirthday.glb", "a birthday cake", KENNEY),
    "ship": ("bevy/ship/craft_speederD.gltf", "a blue car", KENNEY),
    "palm": ("bevy/PalmTree/PalmTree.gltf", "a green palm", "Bevy, MIT or Apache-2.0"),
    "colors": ("claygl/test/VertexColorTest.glb", "a wooden box", "E. Mackey, AGI, CC BY 4.0"),
    "boombox": ("claygl/BoomBox/BoomBox.glb", "a red radio", "Microsoft, CC0"),
    "bush": ("sweethome/scopia/bush/bush.obj", "a green bush", SCOPIA),
    "couch": ("kaykit-f/gltf/couch_pillows.gltf", "a red sofa", KAYKIT),
    "pointer": ("khr/24_animation_pointer/24_animation_pointer.gltf", "a red toy", "Khronos, Apache-2.0"),
    "parent": ("khr/06_parent-inverse-anim/06_parent-inverse-anim.gltf", "a blue box", "Khronos, Apache-2.0"),
    "chair": (
        "sweethome/blendswap-cc-0/chairWithCushion/chairWithCushion.obj",
        "a blue chair",
        "Blend Swap, CC0",
    ),
    "toy": ("sweethome/blendswap-cc-0/woodToy/woodToy.obj", "a wooden toy", "Blend Swap, CC0"),
    "armchair": ("kaykit-f/obj/armchair_pillows.obj", "a leather armchair", KAYKIT),
}


def run(mesh: Path, prompt: str, out: Path, steps: int) -> Path:
    """The mesh file of a run, which is made where it is missing."""
    result = next(iter(sorted(out.glob("asset.*[bj]"))), None)
    if result is None:
        command = [
            "texture",
            str(mesh),
            prompt,
            "--quality",
            "draft",
            "--steps",
            str(steps),
            "--out",
            str(out),
        ]
        subprocess.run([sys.executable, "-m", "pgc3d", *command], check=True)
        result = next(iter(sorted(out.glob("asset.*[bj]"))))
    return result


def views(path: Path) -> list[torch.Tensor]:
    """Two images of a mesh file."""
    asset = read_mesh(path)
    placement = place(asset.vertices, asset.faces, up="+y", front="auto")
    standing = replace(asset, vertices=placement.to_world(asset.vertices))
    rasterizer = build_rasterizer("auto", torch.device("cpu"))
    cameras = turntable(5)[:2]
    return list(to_bytes(render_views(standing, cameras, SIZE, rasterizer=rasterizer).color))


def main() -> None:
    """Make the runs that are missing, compare their documents and write the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    images, labels = [], []
    for name, (file, prompt, licence) in JOBS.items():
        result = run(options.assets / file, prompt, options.runs / name, options.steps)
        with opened_document(options.runs / name / "document.zip") as given:
            compare = compare_objs if given.suffix == ".obj" else compare_documents
            found = compare(given, result)
            lost = [f"{item.kind} {item.place}" for item in found if not is_allowed(item)]
            images += [*views(given), *views(result)]
        record = {"name": name, "differences": len(found), "must stay": lost}
        sys.stdout.write(f"{json.dumps(record)}\n")
        labels += [given.name, licence, prompt, ""]
    Image.fromarray(tile(images, 8, labels).numpy()).save(options.sheet, quality=82, optimize=True)


if __name__ == "__main__":
    main()
