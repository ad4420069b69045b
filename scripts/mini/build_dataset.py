"""Build the data set of the bundled prior from Debian's package sweethome3d-furniture 1.8-1.

    python scripts/mini/build_dataset.py sweethome3d-furniture_1.8-1_all.deb OUT

SOURCE is the .deb or a folder with its .sh3f files. Labels, captions and the split stand in labels.json
beside this file. README.md describes what is written.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from wavefront import Floats, Ints, Material, Polygons, parse_mtl, parse_obj, triangulate, unit_vectors

logger = logging.getLogger(__name__)

SHA256 = "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"
LICENCES = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
}
# Two models in the CC0 collection come with a CC-BY licence page of their own.
OWN_LICENCE = {
    "Blend Swap CC-0#winchesterSofa": "CC-BY-3.0",
    "Blend Swap CC-0#winchesterArmchair": "CC-BY-3.0",
}
CREASE_DEGREES = 50.0
TEXTURE_SIZE = 256


class Job(NamedTuple):
    """One model to convert."""

    archive: Path
    model: str  # path of the .obj in the archive
    rotation: Floats  # [3, 3]
    target: Path


def corner_normals(vertices: Floats, faces: Ints, smooth: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Make a unit normal for every corner of every triangle.

    A corner of a smooth face averages, weighted by angle, the normals of the smooth faces that meet at its
    position and lie within the crease angle of its own face; a corner of any other face takes the face's.

    Args:
        vertices: [V, 3]; vertices at one position count as one.
        faces: [F, 3].
        smooth: [F].

    Returns:
        [F, 3, 3].
    """
    corners = vertices[faces].astype(np.float32)
    face_normal = unit_vectors(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    normals = np.repeat(face_normal[:, None], 3, 1)
    chosen = np.flatnonzero(np.repeat(smooth, 3))
    keys = np.unique(_position_keys(vertices), return_inverse=True)[1].ravel()[faces].ravel()[chosen]
    order = np.argsort(keys, kind="stable")
    group, corner = keys[order], chosen[order]
    normal, weight = face_normal[corner // 3], _angles(corners).ravel()[corner][:, None]
    total = normal * weight
    last = np.searchsorted(group, group, side="right") - 1 - np.arange(len(group))
    first = np.flatnonzero(last > 0)
    limit, shift = np.cos(np.radians(CREASE_DEGREES)), 1
    while len(first):  # pairs of corners at one position, `shift` apart
        second = first + shift
        near = np.einsum("ij,ij->i", normal[first], normal[second]) > limit
        a, b = first[near], second[near]
        total[a] += normal[b] * weight[b]
        total[b] += normal[a] * weight[a]
        shift += 1
        first = first[last[first] >= shift]
    normals.reshape(-1, 3)[corner] = unit_vectors(total, otherwise=normal)
    return normals


def _position_keys(vertices: Floats) -> NDArray[np.int64]:
    """One integer per position, on a grid of 2^-20 of the largest extent."""
    low = vertices.min(0)
    grid = np.round((vertices - low) * ((1 << 20) / max(float((vertices - low).max()), 1e-30))).astype(
        np.int64
    )
    return np.asarray((grid[:, 0] << 42) | (grid[:, 1] << 21) | grid[:, 2])


def _angles(corners: Floats) -> Floats:
    """The angle at each corner of triangles [F, 3, 3]."""
    ahead = unit_vectors(np.roll(corners, -1, 1) - corners)
    back = unit_vectors(np.roll(corners, 1, 1) - corners)
    return np.asarray(np.arccos(np.clip((ahead * back).sum(-1), -1, 1)))


def model_arrays(
    polygons: Polygons,
    materials: Mapping[str, Material],
    textures: Mapping[str, NDArray[np.uint8]],
    rotation: Floats,
) -> dict[str, NDArray[Any]]:
    """Triangulate, rotate, normalise and dress one model.

    Args:
        polygons: the model as read.
        materials: its library; a material that is not in it becomes light grey.
        textures: RGBA images by the name that the library gives; a missing one leaves the colour.
        rotation: [3, 3], applied to column vectors before normalising.

    Returns:
        The arrays of the store, see README.md.
    """
    corners, owner = triangulate(polygons.positions[polygons.corner_position], polygons.sizes)
    used = [materials.get(name, Material()) for name in polygons.material_names]
    visible = np.array([material.alpha > 0 for material in used])[polygons.material[owner]]
    faces = polygons.corner_position[corners]
    visible &= _first_of_its_kind(polygons.positions, faces)
    corners, owner = corners[visible], owner[visible]
    kept, faces = np.unique(faces[visible], return_inverse=True)
    vertices, faces = _normalize(polygons.positions[kept] @ rotation.T), faces.reshape(-1, 3)
    corner_uv = polygons.corner_uv[corners]
    has_texture = np.array([material.texture in textures for material in used])[polygons.material[owner]]
    textured = has_texture & (corner_uv >= 0).all(1)
    uv = np.zeros((*faces.shape, 2))
    uv[textured] = polygons.uv[corner_uv[textured]]
    return {
        "vertices": vertices.astype(np.float32),
        "faces": faces.astype(np.int32),
        "normals": corner_normals(vertices, faces, polygons.smooth[owner]),
        "uv": uv.astype(np.float32),
        **_material_arrays(used, textures, polygons.material[owner], textured),
    }


def _first_of_its_kind(vertices: Floats, faces: Ints) -> NDArray[np.bool_]:
    """Mark faces [F] with three different corners, and the first of those at one place, either side out."""
    keys = np.unique(_position_keys(vertices), return_inverse=True)[1].ravel()
    places = np.sort(keys[faces], 1)
    first = np.zeros(len(faces), bool)
    first[np.unique(places, axis=0, return_index=True)[1]] = True
    return np.asarray(first & (np.diff(places, axis=1) > 0).all(1))


def _normalize(vertices: Floats) -> Floats:
    """Centre the bounding box and put the farthest vertex at radius 1."""
    centered = vertices - (vertices.min(0) + vertices.max(0)) / 2
    return np.asarray(centered / np.linalg.norm(centered, axis=1).max())


def _material_arrays(
    materials: list[Material],
    textures: Mapping[str, NDArray[np.uint8]],
    face_material: Ints,
    textured: NDArray[np.bool_],
) -> dict[str, NDArray[Any]]:
    """Tables of the different looks in use.

    A textured look is white, so that texture times colour is the texture. Where a texture has no
    coordinates its mean colour is shown, which is nearest to the catalogue's own images.
    """
    number: dict[tuple[str, tuple[float, ...]], int] = {}
    pairs, face_pair = np.unique(face_material * 2 + textured, return_inverse=True)
    pair_look = []
    for pair in pairs:
        material, with_texture = materials[pair // 2], bool(pair % 2)
        texture = textures.get(material.texture)
        color = material.color if texture is None else _mean_color(texture)
        look = (material.texture, (1.0, 1.0, 1.0)) if with_texture else ("", color)
        pair_look.append(number.setdefault((look[0], (*look[1], material.alpha)), len(number)))
    names = sorted({name for name, _ in number if name})
    return {
        "face_material": np.array(pair_look, np.int32)[face_pair.ravel()],
        "material_color": np.array([color for _, color in number], np.float32),
        "material_texture": np.array([names.index(name) if name else -1 for name, _ in number], np.int32),
        **{f"texture_{k}": textures[name] for k, name in enumerate(names)},
    }


def _mean_color(texture: NDArray[np.uint8]) -> tuple[float, ...]:
    """The mean of an RGBA image [H, W, 4], weighted by alpha, in [0, 1]."""
    weight = texture[..., 3:] / 255 + 1e-6
    return tuple(((texture[..., :3] / 255 * weight).sum((0, 1)) / weight.sum()).tolist())


def read_texture(data: bytes) -> NDArray[np.uint8]:
    """Decode an image to RGBA with its longer side at most 256.

    Pillow weights colours by alpha when it resizes, and Hamming does not overshoot. Clear pixels are often
    black; they take the mean colour, lest interpolation draws dark edges.
    """
    texture = Image.open(io.BytesIO(data)).convert("RGBA")
    scale = min(1.0, TEXTURE_SIZE / max(texture.size))
    size = (max(1, round(texture.width * scale)), max(1, round(texture.height * scale)))
    pixels = np.array(texture.resize(size, Image.Resampling.HAMMING) if scale < 1 else texture)
    pixels[pixels[..., 3] == 0, :3] = np.round(np.multiply(_mean_color(pixels), 255))
    return pixels


def convert(job: Job) -> None:
    """Write one model of an archive."""
    with zipfile.ZipFile(job.archive) as archive:
        polygons = parse_obj(archive.read(job.model).decode("latin-1"))
        folder = job.model.rpartition("/")[0] + "/"
        beside = {name[len(folder) :]: name for name in archive.namelist() if name.startswith(folder)}
        # One model names a library that is not there; no folder has two.
        library = next(name for name in beside if name.lower().endswith(".mtl"))
        materials = parse_mtl(archive.read(beside[library]).decode("latin-1"))
        names = {material.texture for material in materials.values()} & (beside.keys() - {""})
        textures = {name: read_texture(archive.read(beside[name])) for name in names}
    arrays: dict[str, Any] = model_arrays(polygons, materials, textures, job.rotation)
    np.savez(job.target, **arrays)


def read_catalog(archive: Path) -> dict[str, dict[str, str]]:
    """Read the entries of a furniture library by their id."""
    with zipfile.ZipFile(archive) as file:
        text = file.read("PluginFurnitureCatalog.properties").decode("latin-1")
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    entries: dict[str, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.MULTILINE):
        entries.setdefault(number, {})[key] = value.strip()
    return {entry["id"]: entry for entry in entries.values()}


def unpack_deb(deb: Path, folder: Path) -> None:
    """Take the furniture libraries out of the Debian package (an `ar` archive with a tar in it)."""
    if hashlib.sha256(deb.read_bytes()).hexdigest() != SHA256:
        logger.warning("%s is not version 1.8-1 as published; the labels may not fit", deb)
    members = dict(_ar_members(deb.read_bytes()))
    data = next(content for name, content in members.items() if name.startswith("data.tar"))
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            source = archive.extractfile(member) if member.name.endswith(".sh3f") else None
            if source is not None:
                (folder / Path(member.name).name).write_bytes(source.read())


def _ar_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    start = 8
    while start < len(data):
        name, size = data[start : start + 16].decode().strip(" /"), int(data[start + 48 : start + 58])
        yield name, data[start + 60 : start + 60 + size]
        start += 60 + size + size % 2


def plan(
    archives: Iterable[Path], labels: Mapping[str, dict[str, Any]], out: Path
) -> tuple[list[Job], list[dict[str, Any]]]:
    """List what to convert, and the index of the result."""
    jobs, index = [], []
    order = {name: number for number, name in enumerate(labels)}
    for path in sorted(archives):
        for name, entry in read_catalog(path).items():
            label = labels.get(name, {"drop": "not labelled"})
            if "drop" in label:
                continue
            file = f"models/{order[name]}.npz"
            rotation = np.array(entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), float).reshape(3, 3)
            jobs.append(Job(path, entry["model"].lstrip("/"), rotation, out / file))
            licence = OWN_LICENCE.get(name, LICENCES[path.stem])
            origin = {"creator": entry["creator"], "licence": licence, "collection": path.stem}
            index.append({"id": name, **label, **origin, "file": file})
    return jobs, index


def attributions(archives: Iterable[Path], index: list[dict[str, Any]]) -> dict[str, Any]:
    """Who made what under which licence, with the licence texts."""
    fields = ("id", "label", "creator", "licence", "collection")
    texts = {path.stem: zipfile.ZipFile(path).read("LICENSE.TXT").decode("latin-1") for path in archives}
    return {
        "source": "sweethome3d-furniture 1.8-1 (Debian main); models were triangulated, centred and scaled",
        "models": [{field: entry[field] for field in fields} for entry in index],
        "licences": texts,
    }


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Build the data set of the bundled prior.")
    parser.add_argument("source", type=Path, help="the .deb, or a folder that holds its .sh3f files")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    source, out = arguments.source, arguments.out
    (out / "models").mkdir(parents=True, exist_ok=True)
    if source.is_file():
        unpack_deb(source, out / "source")
        source = out / "source"
    archives = sorted(source.rglob("*.sh3f"))
    if {path.stem for path in archives} != set(LICENCES):
        parser.error(f"{source} must hold {', '.join(LICENCES)} (.sh3f), got {len(archives)} such files")
    labels = json.loads(Path(__file__).with_name("labels.json").read_text())
    jobs, index = plan(archives, labels, out)
    with Pool(arguments.workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(convert, jobs), 1):
            print(f"\r{done} of {len(jobs)} models", end="", flush=True)
    (out / "index.json").write_text(json.dumps(index, indent=0, ensure_ascii=False))
    credit = attributions(archives, index)
    (out / "attributions.json").write_text(json.dumps(credit, indent=1, ensure_ascii=False))
    print()


if __name__ == "__main__":
    main()
