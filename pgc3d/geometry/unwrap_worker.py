"""Run xatlas in a process of its own, so that it can be stopped: `unwrap_worker.py INPUT.npz OUTPUT.npz`.

It imports nothing from pgc3d: a child that loads torch would cost more than most unwraps.
"""

import sys

import numpy as np
import xatlas


def main(source: str, target: str) -> None:
    with np.load(source) as arrays:
        vertices, faces = arrays["vertices"], arrays["faces"]
        size, padding = int(arrays["size"]), int(arrays["padding"])
    atlas = xatlas.Atlas()
    atlas.add_mesh(vertices, faces)
    pack = xatlas.PackOptions()
    pack.resolution = size
    pack.padding = padding
    atlas.generate(xatlas.ChartOptions(), pack)
    vertex, uv_faces, uv = atlas[0]
    np.savez(target, vertex=vertex, uv_faces=uv_faces, uv=uv)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
