"""Material libraries of Wavefront OBJ files, and the other files that an OBJ refers to."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pgc3d.mesh_io.limits import inside
from pgc3d.mesh_io.lines import Lines, decoded, number, plain_text, quoted
from pgc3d.mesh_io.side_images import image_loader, is_file, is_inside, refusal
from pgc3d.mesh_io.source import SourceMaterial

MAX_LIBRARY = 1 << 24  # bytes
MAX_LIBRARIES = 1000
UNDEFINED = 0.8  # grey of a material without a colour
MAPS = {
    "map_d": "mask",
    "map_pr": "roughness",
    "map_pm": "metallic",
    "norm": "normal",
}  # images beside the base colour
MAP_LINE = re.compile(r"map_\w+|norm|bump|disp|decal|refl")  # keys of lines that name an image
# options of a map and how many words follow: (at least, at most)
OPTIONS = {
    "-blendu": (1, 1), "-blendv": (1, 1), "-boost": (1, 1), "-bm": (1, 1), "-cc": (1, 1), "-clamp": (1, 1),
    "-imfchan": (1, 1), "-mm": (2, 2), "-o": (1, 3), "-s": (1, 3), "-t": (1, 3), "-texres": (1, 1),
    "-type": (1, 1),
}  # fmt: skip


@dataclass(frozen=True)
class MtlMaterial:
    """A material in a library: its base colour, and the images of its other properties."""

    color: tuple[float, float, float] = (UNDEFINED, UNDEFINED, UNDEFINED)  # sRGB
    alpha: float = 1.0
    image: str = ""  # as the library names it
    scale: tuple[float, float] = (1.0, 1.0)  # of the texture coordinates, before `offset` is added
    offset: tuple[float, float] = (0.0, 0.0)
    clamped: bool = False
    library: Path = Path()
    mask: str = ""  # image of alpha
    roughness: str = ""  # images, as the library names them
    metallic: str = ""
    normal: str = ""

    def source(self, name: str, load: Callable[[], Image.Image] | None) -> SourceMaterial:
        """The source material; an image replaces the colour, as in most programs."""
        rgb = (1.0, 1.0, 1.0) if self.image else self.color
        wrap = "clamp" if self.clamped else "repeat"
        move = None
        if self.image and (self.scale != (1.0, 1.0) or self.offset != (0.0, 0.0)):
            (u, v), (du, dv) = self.scale, self.offset
            move = torch.tensor([[u, 0.0, du], [0.0, v, dv]])
        surface, normal = self._surface(), self._loader(self.normal)
        return SourceMaterial(
            name,
            torch.tensor([*rgb, self.alpha]),
            load,
            (wrap, wrap),
            move,
            surface,
            normal,
            alpha="MASK" if self.mask else "BLEND",
            load_alpha=self._loader(self.mask),
            image_key=self.image,
        )

    def _loader(self, name: str) -> Callable[[], Image.Image] | None:
        """None where the image is not there: only base colours must be complete."""
        found = name and is_inside(name, self.library)
        exists = found and is_file(inside(self.library.parent, name, self.library))
        return image_loader(name, self.library) if exists else None

    def _surface(self) -> Callable[[], Image.Image] | None:
        """Opens roughness and metallic as one image in glTF's layout, where both are there."""
        first, second = self._loader(self.roughness), self._loader(self.metallic)
        return None if first is None or second is None else partial(_joined, first, second)


@dataclass(frozen=True)
class Libraries:
    """Materials by name, and for each unread library a note and an error message."""

    materials: dict[str, MtlMaterial]
    faults: tuple[tuple[str, str], ...] = ()

    def sources(self, names: Iterable[str]) -> tuple[SourceMaterial, ...]:
        """The materials of these names; for one that may be in an unread library `load_image` raises."""
        loaders: dict[tuple[str, Path], Callable[[], Image.Image]] = {}  # an image of several is opened once
        loaded = []
        for name in names:
            item = self.materials.get(name)
            if item is not None:
                key = (item.image, item.library)
                loader = loaders.setdefault(key, image_loader(*key)) if item.image else None
                loaded.append(item.source(name, loader))
            else:
                load = refusal(self.faults[0][1]) if self.faults else None
                grey = torch.tensor([UNDEFINED, UNDEFINED, UNDEFINED, 1.0])
                loaded.append(SourceMaterial(name, grey, load))
        return tuple(loaded)

    def notes(self, names: Iterable[str]) -> list[str]:
        """Notes about missing materials of these names, at most one line."""
        if self.faults:
            return [self.faults[0][0]]
        missing = [name for name in names if name not in self.materials]
        return [f"no library describes the material {quoted(missing[0])}, so it is grey"] if missing else []


def read_libraries(names: Sequence[str], path: Path) -> Libraries:
    """The material libraries of an OBJ that exist in its folder; missing ones raise no error here."""
    materials: dict[str, MtlMaterial] = {}
    faults = []
    for name in list(dict.fromkeys(names))[:MAX_LIBRARIES]:
        found = list(library_paths(name, path))
        if not found:
            faults.append(_fault(name, path))
        for library in found:
            for key, material in parse_mtl(_read(library), library).items():
                materials.setdefault(key, material)
    return Libraries(materials, tuple(faults))


def _fault(name: str, path: Path) -> tuple[str, str]:
    library = f"material library {quoted(name, 100)}"
    if is_inside(name, path):
        message = f"the {library} of {path} must exist, got none; put it beside the mesh"
        return f"the {library} is missing", message
    message = f"a mesh must refer to files in its own folder only, but {path} names the {library}"
    return f"the {library} is outside the folder and not read", f"{message}; put all files into one folder"


def source_files(data: bytes | str, path: Path) -> Iterator[Path]:
    """The other files of an OBJ's colours: libraries and the base colour images in them.

    Those that do not exist, or lie outside the folder, are left out.
    """
    text = plain_text(data.encode() if isinstance(data, str) else data)
    found = re.findall(rb"^[ \t]*mtllib[ \t]+([^\n]*)", text, re.MULTILINE)
    for name in list(dict.fromkeys(found))[:MAX_LIBRARIES]:
        for library in library_paths(decoded(name), path):
            yield library
            for material in parse_mtl(_read(library), library).values():
                if material.image and is_inside(material.image, library):
                    image = inside(library.parent, material.image, library)
                    if is_file(image):
                        yield image


def map_names(library: Path) -> list[str]:
    """The images that the materials of a library name, base colours and others."""
    lines = decoded(plain_text(_read(library))).split("\n")
    return [name for line in lines if (name := map_name(line))]


def map_name(line: str) -> str:
    """The image that a line of a library names, "" for other lines."""
    key, _, arguments = line.strip().replace("\t", " ").partition(" ")
    return _with_map(MtlMaterial(), arguments.strip()).image if MAP_LINE.fullmatch(key.lower()) else ""


def library_names(lines: Lines) -> list[str]:
    """What the lines of an OBJ name as its material libraries, as read_obj has it; see `library_paths`."""
    rows = lines.starting_with(b"mtllib").tolist()
    return [decoded(lines.text(row).replace(b"\t", b" ").partition(b" ")[2]).strip() for row in rows]


def library_paths(name: str, path: Path) -> Iterator[Path]:
    """The file of this name (with its blanks), or the files that the words of `name` name."""
    name = name.strip()
    for candidate in dict.fromkeys((name, name.strip('"'))):
        if candidate and is_inside(candidate, path):
            whole = inside(path.parent, candidate, path)
            if _readable(whole):
                yield whole
                return
    words = name.split()
    for word in words if len(words) > 1 else ():
        if is_inside(word, path) and _readable(library := inside(path.parent, word, path)):
            yield library


def _readable(path: Path) -> bool:
    try:
        return is_file(path) and path.stat().st_size <= MAX_LIBRARY
    except OSError:
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def parse_mtl(data: bytes, library: Path) -> dict[str, MtlMaterial]:
    """Materials by name; unknown lines are skipped, and the first material of a name is used."""
    by_name: dict[str, MtlMaterial] = {}
    name: str | None = None
    for line in decoded(plain_text(data)).split("\n"):
        key, _, arguments = line.strip().replace("\t", " ").partition(" ")
        if key.lower() == "newmtl":
            name = arguments.strip()
            name = None if name in by_name else name
        if name is not None and not key.startswith("#"):
            by_name[name] = _with_line(
                by_name.get(name, MtlMaterial(library=library)), key.lower(), arguments.strip()
            )
    return by_name


def _with_line(material: MtlMaterial, key: str, arguments: str) -> MtlMaterial:
    values = [value for word in arguments.split() if (value := number(word)) is not None]
    if key == "kd" and values:
        red, green, blue = (values * 3)[:3] if len(values) < 3 else values[:3]
        return replace(material, color=(_unit(red), _unit(green), _unit(blue)))
    if key in ("d", "tr") and values:
        return replace(material, alpha=_unit(values[-1] if key == "d" else 1 - values[-1]))
    if key == "map_kd":
        return _with_map(material, arguments)
    if key in MAPS:
        changed: dict[str, Any] = {MAPS[key]: _with_map(MtlMaterial(), arguments).image}
        return replace(material, **changed)
    return material


def _joined(roughness: Callable[[], Image.Image], metallic: Callable[[], Image.Image]) -> Image.Image:
    first = roughness().convert("L")
    second = metallic().convert("L").resize(first.size)
    return Image.merge("RGB", (Image.new("L", first.size, 255), first, second))


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0) if value == value else 0.0


def _with_map(material: MtlMaterial, arguments: str) -> MtlMaterial:
    """`-s 2 2 -clamp on a name with blanks.png`: the options and what is behind them."""
    words = arguments.split(" ")
    while words and (words[0] == "" or words[0].lower() in OPTIONS):
        option = words.pop(0).lower()
        if not option:
            continue
        values = _take(words, *OPTIONS[option])
        if option == "-clamp":
            material = replace(material, clamped=values == ["on"])
        elif option == "-s":
            material = replace(material, scale=_pair(values, 1.0))
        elif option == "-o":
            material = replace(material, offset=_pair(values, 0.0))
    return replace(material, image=" ".join(words).strip().strip('"'))


def _pair(words: list[str], usual: float) -> tuple[float, float]:
    values = [number(word) or 0.0 for word in words] + [usual] * 2
    return values[0], values[1]


def _take(words: list[str], least: int, most: int) -> list[str]:
    """Remove an option's words from the front; those beyond the minimum only while they are numbers."""
    taken: list[str] = []
    while words and len(taken) < most:
        if not words[0]:
            words.pop(0)
            continue
        is_number = number(words[0]) is not None
        if (most > least and not is_number) or (len(taken) >= least and len(words) == 1):
            break
        taken.append(words.pop(0))
    return taken
