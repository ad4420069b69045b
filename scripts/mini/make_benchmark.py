"""Write the benchmark of the held-out models: input images, ground truth, and the list of `pgc3d eval`.

    python scripts/mini/make_benchmark.py DATASET OUT
    python scripts/mini/make_benchmark.py DATASET OTHER --split train --limit 12
    pgc3d eval OUT/items.jsonl RESULTS --baseline hull

The input shows a model from 30 degrees to the right of its front and 20 above the horizon. That camera is
azimuth 0 of the benchmark, as of every image run: the truth is turned by -30 degrees about y, so it stands as
the input shows it, also in place and size (`frame` of the items). Both come from one file, opaque and lit
alike. Left out are models with more than 30 % of glass, and those with more than 5 % of cut-outs (leaves),
whose silhouette needs alpha.
"""

import argparse
import math
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from views import Model, load_index, load_model, sample

from pgc3d.evaluation.alignment import rigid
from pgc3d.evaluation.items import Item, write_items
from pgc3d.evaluation.procedural import ELEVATION_DEGREES, texture_per_face, write_item
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.rendering import build_rasterizer

AZIMUTH_DEGREES = 30.0
GLASS, CUTOUT = 0.3, 0.05  # fractions of the surface, above which a model is left out


def yaw(degrees: float) -> Float[Tensor, "3 3"]:
    """Rotation about y that maps the view from azimuth `degrees` to azimuth 0."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return torch.tensor([[cosine, 0.0, -sine], [0.0, 1.0, 0.0], [sine, 0.0, cosine]])


def cutout_fraction(model: Model) -> float:
    """Fraction of the surface that alpha textures make invisible, by the mean alpha of each texture."""
    corners = model.vertices[model.faces.long()]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    clear = []
    for offset, height, width in model.material_texture.tolist():
        texels = model.texels[offset : offset + height * width, 3]
        clear.append(1 - float(texels.mean()) if offset >= 0 else 0.0)
    share = torch.tensor(clear)[model.face_material]
    return float((share * area).sum() / area.sum())


def truth_of(model: Model, texture_size: int, rasterizer: Rasterizer) -> MeshAsset:
    """The model with all its textures baked into one, seen from its input's camera at azimuth 0."""

    def color(face: Tensor, weights: Tensor) -> Tensor:
        uv = (model.uv[face] * weights[..., None]).sum(1)
        return sample(model, model.face_material[face], uv)[:, :3]

    mesh = texture_per_face(
        model.vertices, model.faces.long(), model.normals, color, texture_size, rasterizer=rasterizer
    )
    return rigid(mesh, yaw(AZIMUTH_DEGREES), torch.zeros(3))


def name_of(record: dict[str, Any], taken: set[str]) -> str:
    """A file name from the label, with a letter where it is taken."""
    slug = re.sub(r"[^a-z]+", "-", record["label"].lower()).strip("-")
    candidates = [slug, *(f"{slug}-{letter}" for letter in "bcdefghijklmnopqrstuvwxyz")]
    return next(candidate for candidate in candidates if candidate not in taken)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texture-size", type=int, default=1024)
    parser.add_argument("--split", choices=("test", "train"), default="test", help="train: for comparison")
    parser.add_argument("--limit", type=int, default=None, help="take only so many models, evenly spread")
    arguments = parser.parse_args()
    device = torch.device("cpu")
    rasterizer = build_rasterizer("cpu", device)
    records = [record for record in load_index(arguments.dataset) if record["split"] == arguments.split]
    count = min(arguments.limit or len(records), len(records))
    records = [records[len(records) * place // count] for place in range(count)]
    items: list[Item] = []
    for record in tqdm(records, desc="benchmark"):
        model = load_model(arguments.dataset, record, device)
        if record["glass"] > GLASS or cutout_fraction(model) > CUTOUT:
            continue
        name = name_of(record, {item.name for item in items})
        truth = truth_of(model, arguments.texture_size, rasterizer)
        items.append(
            write_item(
                arguments.out / name,
                record["caption"],
                truth,
                rasterizer=rasterizer,
                elevation_degrees=ELEVATION_DEGREES,
            )
        )
    write_items(arguments.out / "items.jsonl", items)
    print(f"{len(items)} of {len(records)} models: {arguments.out / 'items.jsonl'}")


if __name__ == "__main__":
    main()
