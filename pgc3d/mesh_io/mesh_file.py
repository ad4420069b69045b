"""Writing and reading of mesh assets in any of the formats of `formats`.

The axes are not changed: y up, front +z, or those of a given mesh. Files are written atomically.
"""

from pathlib import Path

from pgc3d.choices import Format
from pgc3d.disk import write_files
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.colors import colored
from pgc3d.mesh_io.encoders import GENERATOR
from pgc3d.mesh_io.formats import FORMATS, WRITABLE
from pgc3d.mesh_io.gltf_writer import read_metadata
from pgc3d.mesh_io.reader import read_source

__all__ = ["GENERATOR", "WRITABLE", "read_mesh", "write_mesh"]


def write_mesh(path: Path, asset: MeshAsset, format: Format) -> list[Path]:
    """Write `asset`; the written files, the mesh first.

    Formats that carry textures need a texture, ply needs `vertex_color`, stl takes any surface.

    Raises:
        InputError: the folder cannot be written or the disk is full, nothing is left behind; or the package
            that writes the format is not installed.
        ValueError: the asset lacks data that the format requires.
    """
    write = FORMATS[format].write
    if write is None:
        raise ValueError(f"the format must be one of {', '.join(WRITABLE)}, got {format}")
    contents = write(path, asset)
    write_files(contents)  # side files come first, so that they exist when the mesh does
    return [path, *(file for file in contents if file != path)]


def read_mesh(path: Path) -> MeshAsset:
    """Read a file that `write_mesh` or another program made, with its colours.

    Vertices at the same position are welded, whatever normals, texture coordinates and colours the faces have
    there. Metadata is read from a GLB. All meshes of a scene are merged with the transforms of its nodes.

    Raises:
        InputError: there is no such file, its format is unknown, it is damaged, or one of its images is.
    """
    source = read_source(path)
    metadata = read_metadata(path.read_bytes()) if path.suffix.lower() == ".glb" else {}
    return colored(source, metadata)
