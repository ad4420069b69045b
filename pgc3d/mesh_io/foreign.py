"""Detection of files in unsupported formats, with the way to convert them."""

import json
import re
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from pgc3d.mesh_io.formats import READABLE
from pgc3d.mesh_io.lines import quoted
from pgc3d.mesh_io.side_images import is_file, is_folder

HEAD = 4096  # bytes in which a format is recognised
BLANK = b"\0 \t\r\n"
GLTF_KEYS = (b'"asset"', b'"meshes"', b'"nodes"', b'"accessors"')
BLENDER = "open it in Blender and use File > Export > glTF 2.0"
IMPORT = "import it into Blender and use File > Export > glTF 2.0"
UNPACK = "unpack it and give the mesh inside"

# by suffix: what it is, and what to do
SUFFIXES = {
    "3ds": ("a 3D Studio file", IMPORT),
    "3mf": ("a 3MF file", "rename it to .3mf"),
    "abc": ("an Alembic file", IMPORT),
    "blend": ("a Blender file", BLENDER),
    "c4d": ("a Cinema 4D file", "open it in Cinema 4D and export glTF"),
    "dae": ("a COLLADA file", "open it in Blender up to 4.5 or MeshLab and export glTF or OBJ"),
    "fbx": ("an FBX file", "rename it to .fbx"),
    "iges": ("a CAD file", "open it in FreeCAD and export OBJ or glTF"),
    "igs": ("a CAD file", "open it in FreeCAD and export OBJ or glTF"),
    "las": ("a point cloud", "make a surface of it first, as with MeshLab's Poisson reconstruction"),
    "laz": ("a point cloud", "make a surface of it first, as with MeshLab's Poisson reconstruction"),
    "ma": ("a Maya file", "open it in Maya and export FBX or OBJ, then glTF from Blender"),
    "max": ("a 3ds Max file", "open it in 3ds Max and export OBJ"),
    "mb": ("a Maya file", "open it in Maya and export FBX or OBJ, then glTF from Blender"),
    "off": ("an OFF file", "rename it to .off"),
    "pcd": ("a point cloud", "make a surface of it first, as with MeshLab's Poisson reconstruction"),
    "skp": ("a SketchUp file", "open it in SketchUp and export glTF or OBJ"),
    "splat": ("a cloud of Gaussians", "make a mesh of it first"),
    "step": ("a CAD file", "open it in FreeCAD and export OBJ or glTF"),
    "stp": ("a CAD file", "open it in FreeCAD and export OBJ or glTF"),
    "usd": ("a USD file", IMPORT),
    "usda": ("a USD file", IMPORT),
    "usdc": ("a USD file", IMPORT),
    "usdz": ("a USDZ archive", "rename it to .usdz"),
    "vrm": ("a VRM avatar, which is a GLB", "rename it to .glb"),
    "x": ("a DirectX file", "open it in MeshLab and export OBJ"),
    "x3d": ("an X3D file", IMPORT),
    "wrl": ("a VRML file", IMPORT),
}  # fmt: skip

# by the first bytes; those of formats with a suffix above name it
STARTS: tuple[tuple[bytes, str], ...] = (
    (b"Kaydara FBX Binary", "fbx"), (b"; FBX ", "fbx"), (b"BLENDER", "blend"), (b"PXR-USDC", "usdc"),
    (b"#usda", "usda"), (b"ISO-10303-21", "step"), (b"#VRML", "wrl"), (b"Ogawa", "abc"), (b"xof 0", "x"),
    (b"# .PCD", "pcd"), (b"LASF", "las"), (b"//Maya ASCII", "ma"), (b"QC4DC4D6", "c4d"),
)  # fmt: skip
OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec", "a Git LFS pointer, not the mesh", "run git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard (as Blender files are)", BLENDER),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"BZh", "compressed with bzip2", UNPACK),
    (b"\xfd7zXZ", "compressed with xz", UNPACK),
    (b"\x89PNG", "an image", "give a mesh (an image goes to pgc3d image)"),
    (b"\xff\xd8\xff", "an image", "give a mesh (an image goes to pgc3d image)"),
    (b"GIF8", "an image", "give a mesh (an image goes to pgc3d image)"),
    (b"%PDF", "a PDF document", "give a mesh"),
    (b"\x7fELF", "a program", "give a mesh"),
)  # fmt: skip
JSON_TEXT = ("JSON text (a download that failed?)", "give the mesh itself")
MESHES = ("glb", "gltf", "obj", "ply", "stl", "fbx", "dae", "usdc", "usda", "usd", "blend")


def explain_foreign(path: Path, data: bytes) -> str | None:
    """A message with the kind of a file and its conversion; None where it may be in a supported format.

    The content counts first, then the suffix. `data` is the whole file, empty where there is none.
    """
    if is_folder(path):
        return _line(path, "a folder", "give the mesh file inside")
    suffix = path.suffix.lower().removeprefix(".")
    if is_file(path) and not data[:HEAD].strip(BLANK) and not data.strip(BLANK):
        return _line(path, "empty", "export or download it again")
    kind = _by_content(data, suffix) or SUFFIXES.get(suffix)
    if kind is None or (suffix in READABLE and kind is SUFFIXES.get(suffix)):
        return None
    return _line(path, *kind)


def _line(path: Path, what: str, advice: str) -> str:
    return f"a mesh file must be one of {', '.join(READABLE)}, but {path} is {what}; {advice}"


def _by_content(data: bytes, suffix: str) -> tuple[str, str] | None:
    head = data[:HEAD].lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, kind in STARTS:
        if head.startswith(start):
            return SUFFIXES[kind]
    for start, what, advice in OTHERS:
        if head.startswith(start):
            return what, advice
    if head.startswith(b"PK\x03\x04"):
        return _archive(data, suffix)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "an image", "give a mesh (an image goes to pgc3d image)"
    if head.startswith(b"<"):
        return _markup(head)
    if head.startswith(b"glTF"):
        return None if suffix in ("glb", "gltf") else ("a GLB", "rename it to .glb")
    return _text(head, data, suffix)


def _archive(data: bytes, suffix: str) -> tuple[str, str]:
    if suffix in ("3mf", "usdz"):
        return SUFFIXES[suffix]
    names: list[str] = []
    with suppress(Exception), zipfile.ZipFile(BytesIO(data)) as archive:
        names = archive.namelist()[:10_000]
    if any(name.lower().startswith("3d/") and name.lower().endswith(".model") for name in names):
        return SUFFIXES["3mf"]
    if names and names[0].lower().endswith((".usdc", ".usda", ".usd")):
        return SUFFIXES["usdz"]
    inside = next(
        (name for name in names if name.lower().endswith(tuple(f".{kind}" for kind in MESHES))), None
    )
    return "a ZIP archive", UNPACK if inside is None else f"unpack it and give {quoted(inside)}"


def _markup(head: bytes) -> tuple[str, str] | None:
    low = head.lower()
    if b"<collada" in low:
        return SUFFIXES["dae"]
    if b"<x3d" in low:
        return SUFFIXES["x3d"]
    if b"<html" in low or b"<!doctype html" in low:
        return "a web page (a download that failed or needs a login)", "download the mesh itself"
    return "XML of a kind that is not read", IMPORT


def _text(head: bytes, data: bytes, suffix: str) -> tuple[str, str] | None:
    if re.match(rb"(ST)?(C)?(N)?4?n?OFF\b", head):
        return SUFFIXES["off"]
    if head.startswith((b"{", b"[")):
        return _json_of_gltf(data) if suffix in ("glb", "gltf") else _json(data)
    if re.match(rb"ply[ \t]*[\r\n]", head) and suffix != "ply":
        return "a PLY", "rename it to .ply"
    return None


def _json_of_gltf(data: bytes) -> tuple[str, str] | None:
    """None for a glTF document and for damaged JSON: the reader gives the place of the damage."""
    if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[" or any(key in data for key in GLTF_KEYS):
        return None
    try:
        json.loads(data.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return None
    return JSON_TEXT


def _json(data: bytes) -> tuple[str, str]:
    with suppress(ValueError, RecursionError):
        if "asset" in json.loads(data):
            return "a glTF of text", "rename it to .gltf"
    return JSON_TEXT
