"""Turn the images in assets/pictures into 3D and lay six views of every GLB out beside its image.

    python scripts/make_image_sheet.py RUNS assets/pictures.jpg

Runs that are finished already are not repeated. Further options go to `pgc3d image`.
"""

import argparse
from pathlib import Path

import torch
from jaxtyping import UInt8
from make_gallery import SIZE, run_once, views
from PIL import Image
from torch import Tensor

from pgc3d.exporting.turntable import tile
from pgc3d.images import resize, to_bytes
from pgc3d.inputs.image import load_prepared_image

PICTURES = Path(__file__).parent.parent / "assets" / "pictures"
ELEVATIONS = {"coffee": 55, "barrel": 15, "table": 25, "couch": 20, "teacup": 25}  # degrees, guessed


def shown(run: Path) -> UInt8[Tensor, "H W 3"]:
    """A run's image as it was prepared, on white."""
    photo = resize(load_prepared_image(run / "input.png")[None], SIZE)[0]  # premultiplied by alpha
    return to_bytes(photo[..., :3] + 1 - photo[..., 3:])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder for the run directories")
    parser.add_argument("out", type=Path, help="JPEG or PNG")
    parser.add_argument("--only", nargs="*", choices=list(ELEVATIONS), default=list(ELEVATIONS))
    arguments, options = parser.parse_known_args()
    rows, labels = [], []
    for name in arguments.only:
        folder, elevation = arguments.runs / name, ELEVATIONS[name]
        run_once(folder, ["image", str(PICTURES / f"{name}.png"), "--elevation", str(elevation), *options])
        rows.append(torch.cat([shown(folder), views(folder / "asset.glb")], 1))
        labels.append(f"{name}, seen from {elevation} degrees above")
        Image.fromarray(tile(rows, 1, labels).numpy()).save(arguments.out, quality=88)


if __name__ == "__main__":
    main()
