"""Reading of mesh files in tests."""

import numpy as np

from pgc3d.mesh_io.obj import read_obj
from pgc3d.mesh_io.ply import read_ply
from pgc3d.mesh_io.stl import read_stl

READERS = {".obj": read_obj, ".ply": read_ply, ".stl": read_stl}


def read(path):
    return READERS[path.suffix](path.read_bytes(), path)


def normals(points, triangles):
    a, b, c = points[triangles].transpose(1, 0, 2)
    return np.cross(b - a, c - a) / 2
