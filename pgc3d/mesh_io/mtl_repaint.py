"""The material library of an OBJ with new images: its materials, some of them changed, and their images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgc3d.images import encode_png
from pgc3d.mesh_io.limits import inside, read_limited
from pgc3d.mesh_io.lines import decoded, plain_text
from pgc3d.mesh_io.mtl import MAP_LINE, MtlMaterial, library_paths, map_name, parse_mtl
from pgc3d.mesh_io.repaint import MaterialImages
from pgc3d.mesh_io.side_images import is_file, is_inside

COLOR_LINES = ("kd", "map_kd", "map_d", "map_pr", "map_pm", "norm")  # replaced where there are new images


@dataclass(frozen=True)
class NewMaterial:
    """A material with new images."""

    old: str  # name of the material that it is made from, "" for none
    name: str
    image: int  # index of its images
    transformed: bool = False  # the images are looked up with the old one's scale and offset


@dataclass
class _Library:
    """Accumulates the new library and the files beside it."""

    folder: Path
    stem: str
    files: dict[Path, bytes] = field(default_factory=dict)
    names: dict[Path, str] = field(default_factory=dict)  # of copied images

    def copy(self, image: Path) -> str:
        """The name of the copy of an image beside the new library."""
        if image not in self.names:
            plain, number = "_".join(image.name.split()), 1
            name = f"{self.stem}_{plain}"
            while self.folder / name in self.files:
                number += 1
                name = f"{self.stem}_{number}_{plain}"
            self.names[image] = name
            self.files[self.folder / name] = read_limited(image, "image of a mesh")
        return self.names[image]


def repaint_libraries(
    source: Path,
    path: Path,
    materials: Mapping[tuple[str, int], NewMaterial],
    images: Sequence[MaterialImages],
    *,
    stem: str,
    libraries: Sequence[str],
    keeps_maps: bool,
) -> dict[Path, bytes]:
    """The contents of the new library and its images, by their paths.

    Args:
        source: the OBJ.
        path: the OBJ that is written.
        materials: those with new images.
        images: of materials.
        stem: of the names of the library and its images.
        libraries: names of the source's libraries.
        keeps_maps: whether changed materials keep maps, which lie on the source's texture coordinates.
    """
    library = _Library(path.parent, stem)
    lines_of = {
        key: _image_lines(library, key, images[key]) for key in sorted({m.image for m in materials.values()})
    }
    changed: dict[str, list[NewMaterial]] = {}
    for material in materials.values():
        changed.setdefault(material.old, []).append(material)
    text: list[str] = []
    for name, lines, file in _blocks(source, libraries):
        known = (
            parse_mtl("\n".join(lines).encode(), file).get(name, MtlMaterial()) if name is not None else None
        )
        new = changed.pop(name, []) if name is not None else []
        if all(material.name != name for material in new):
            text += [_with_copy(line, file, library) for line in lines]
        for material in new:
            options = _options(known) if material.transformed and known is not None else ""
            text.append(f"newmtl {material.name}")
            text += _changed(_without_end(lines[1:]), file, library, keeps_maps=keeps_maps)
            text += [line.format(options=options) for line in lines_of[material.image]]
            if known is not None and known.mask and images[material.image].base_color.shape[2] == 4:
                text.append(text[-1].replace("map_Kd", "map_d"))
            text.append("")
    for material in (item for items in changed.values() for item in items):
        text += [f"newmtl {material.name}", "Ks 0 0 0", "d 1", "illum 1"]
        text += [line.format(options="") for line in lines_of[material.image]]
    return library.files | {path.with_name(f"{stem}.mtl"): ("\n".join(text) + "\n").encode()}


def _blocks(source: Path, libraries: Sequence[str]) -> Iterator[tuple[str | None, list[str], Path]]:
    """The lines before the first material of each library, with None, and those of each material."""
    for file in dict.fromkeys(file for name in libraries for file in library_paths(name, source)):
        name, lines = None, list[str]()
        for line in decoded(plain_text(read_limited(file, "material library"))).rstrip("\n").split("\n"):
            key, _, rest = line.strip().replace("\t", " ").partition(" ")
            if key.lower() == "newmtl":
                yield name, lines, file
                name, lines = rest.strip(), []
            lines.append(line)
        yield name, lines, file


def _without_end(lines: list[str]) -> list[str]:
    """The lines without blank ones at the end."""
    count = len(lines)
    while count and not lines[count - 1].strip():
        count -= 1
    return lines[:count]


def _changed(lines: list[str], file: Path, library: _Library, *, keeps_maps: bool) -> Iterator[str]:
    """The lines of a material with new images that still hold; maps on other coordinates become comments."""
    base = {map_name(line) for line in lines if line.strip().lower().startswith("map_kd")}
    for line in lines:
        key = line.strip().partition(" ")[0].lower()
        if key in COLOR_LINES or (key == "map_ka" and map_name(line) in base):
            continue
        if MAP_LINE.fullmatch(key) and not keeps_maps:
            yield f"# on the texture coordinates of the original: {line.strip()}"
        else:
            yield _with_copy(line, file, library)


def _with_copy(line: str, file: Path, library: _Library) -> str:
    """The line of a map with the name of the copied image; other lines, and missing images, as they are."""
    name = map_name(line)
    if not name or not is_inside(name, file) or not line.rstrip().endswith(name):
        return line
    image = inside(file.parent, name, file)
    return line.rstrip()[: -len(name)] + library.copy(image) if is_file(image) else line


def _image_lines(library: _Library, number: int, images: MaterialImages) -> list[str]:
    """The lines of new images, with the field {options}, which are stored beside the library."""
    mark = f"_{number}" if number else ""
    found = {}
    if images.metallic_roughness is not None:
        found["map_Pr"] = ("roughness", images.metallic_roughness[..., 1])
        found["map_Pm"] = ("metallic", images.metallic_roughness[..., 2])
    if images.normal_map is not None:
        found["norm"] = ("normal", images.normal_map)
    found["map_Kd"] = ("base_color", images.base_color)  # the last line
    lines = ["Kd 1 1 1"]
    for key, (kind, image) in found.items():
        name = f"{library.stem}_{kind}{mark}.png"
        library.files[library.folder / name] = encode_png(image)
        lines.append(f"{key} {{options}}{name}")
    return lines


def _options(material: MtlMaterial) -> str:
    (u, v), (du, dv) = material.scale, material.offset
    return f"-s {u:.9g} {v:.9g} 1 -o {du:.9g} {dv:.9g} 0 "
