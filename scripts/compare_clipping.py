"""The same prompt and seed under several clipping rules: pictures, gradient statistics, speckle.

    python scripts/compare_clipping.py RUNS assets/clipping.png --prompt "a red chair"

Speckle is the mean absolute Laplacian of the rendered colours (4-neighbourhood, sRGB in [0, 1]) over pixels
whose neighbours are all covered, times 1000: noise on a plain surface raises it, so does real detail.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pgc3d.export.mesh_file import read_mesh
from pgc3d.export.roundtrip import comparison_views, render_asset
from pgc3d.export.turntable import tile, to_bytes
from pgc3d.render import build_rasterizer
from pgc3d.types import Rendering

RULES = {
    "no clipping": ("none",),
    "PGC c = 0.1": ("pixel", "threshold=0.1"),
}
SIZE = 256
COLUMNS = ("clipped_fraction", "gradient_p50", "gradient_p90", "gradient_p99", "gradient_max")


def speckle(rendering: Rendering) -> float:
    """Mean absolute Laplacian inside the object, times 1000."""
    color = rendering.color.permute(0, 3, 1, 2)
    solid = (rendering.alpha.permute(0, 3, 1, 2) > 0.999).float()
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    inside = torch.nn.functional.conv2d(solid, kernel.abs()) > 7.999
    laplacian = torch.nn.functional.conv2d(color, kernel.repeat(3, 1, 1, 1), groups=3).abs()
    return 1000 * float(laplacian[inside.expand_as(laplacian)].mean())


def mean_metrics(path: Path) -> dict[str, float]:
    """Means over the run of what was logged."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: sum(line[f"color/{name}"] for line in lines) / len(lines) for name in COLUMNS}


def show(path: Path) -> tuple[Rendering, Float[Tensor, "H W 3"]]:
    """Six views of an exported file."""
    device = torch.device("cpu")
    cameras, background = comparison_views(device)
    rasterizer = build_rasterizer("cpu", device)
    rendering = render_asset(read_mesh(path), cameras, SIZE, background=background, rasterizer=rasterizer)
    return rendering, torch.cat(list(rendering.color), dim=1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path, help="PNG; the numbers go beside it as JSON")
    parser.add_argument("--prompt", default="a red chair")
    parser.add_argument("--guidance-scale", type=float, action="append", help="default: the preset's")
    parser.add_argument("--seed", type=int, default=0)
    arguments, options = parser.parse_known_args()
    rows, labels, table = [], [], []
    for scale in arguments.guidance_scale or [None]:
        for name, (kind, *settings) in RULES.items():
            slug = f"{arguments.prompt} {kind} {scale or 'preset'} {arguments.seed}".replace(" ", "-")
            folder = arguments.runs / slug
            sets = [f"objectives.color.clip.kind={kind}", *(f"objectives.color.clip.{s}" for s in settings)]
            if scale is not None:
                sets.append(f"objectives.color.guidance.guidance_scale={scale}")
            if not (folder / "asset.glb").exists():
                command = [sys.executable, "-m", "pgc3d", "text", arguments.prompt, "--guidance", "mini"]
                command += ["--seed", str(arguments.seed), "--out", str(folder), *options]
                command += [part for item in sets for part in ("--set", item)]
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            rendering, row = show(folder / "asset.glb")
            entry = {"rule": name, "guidance_scale": scale, "speckle": speckle(rendering)}
            table.append(entry | mean_metrics(folder / "metrics.jsonl"))
            print(table[-1], flush=True)
            rows.append(to_bytes(row))
            labels.append(name if scale is None else f"{name}, guidance scale {scale:g}")
    Image.fromarray(tile(rows, 1, labels).numpy()).quantize(256).save(arguments.out, optimize=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
