"""Folders of runs with an asset, metrics and previews, made without optimising anything."""

import numpy as np
import trimesh
from meshes import cube_arrays, write
from PIL import Image

from pgc3d.run_directory import RunDirectory

MAGENTA = (220, 0, 200)


def write_colored_cube(path):
    """A magenta cube of roughness 0.25 and metallic 0.5, both in a texture."""
    vertices, faces, uv = cube_arrays()
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.new("RGB", (60, 40), MAGENTA),
        metallicRoughnessTexture=Image.new("RGB", (60, 40), (0, 64, 128)),
        baseColorFactor=[255, 255, 255, 255],
        roughnessFactor=1.0,
        metallicFactor=1.0,
    )
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return write(mesh, path)


def make_run(folder, *, asset=True, steps=20, **record):
    """A run of two stages, done unless `record` has another status."""
    run = RunDirectory.create(folder)
    run.config.write_text(f"run: {{seed: 3}}\nstages:\n  coarse: {{steps: 10}}\n  fine: {{steps: {steps}}}\n")
    for stage, last in (("coarse", 10), ("fine", 20)):
        for step in range(5, last + 1, 5):
            values = {
                "color/clipped_fraction": step / 40,
                "color/gradient_p50": 1 / step,
                "seconds/render": 0.1,
            }
            run.log_metrics({"stage": stage, "step": step, **values})
            Image.fromarray(np.full((16, 24, 3), step, dtype=np.uint8)).save(run.preview(stage, step))
    files = [write_colored_cube(folder / "asset.glb")] if asset else []
    manifest = {
        "prompt": "a red chair",
        "seed": 3,
        "status": "done",
        "stages": {"coarse": {"status": "done", "steps": 10}, "fine": {"status": "done", "steps": 20}},
        "seconds": {"render": 2.0, "guidance": 6.5},
        "peak_memory_bytes": {"resident": 1_500_000_000},
        "versions": {"pgc3d": "0.1.0"},
        "config": run.config_digest(),
        "files": run.hash_files(files),
    }
    run.write_manifest(manifest | record)
    return folder
