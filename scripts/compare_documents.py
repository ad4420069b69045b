"""Print what differs between a mesh file and its textured result.

    python scripts/compare_documents.py IN OUT [--all]

Of glTF and GLB files nodes, materials, accessors, animations and all other contents are compared by value, of
accessors byte for byte; of OBJ files lines, faces and materials. The exit code is 1 where something that
texturing must not touch differs.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pgc3d.evaluation.documents import Difference, compare_documents
from pgc3d.evaluation.obj_documents import compare_objs
from pgc3d.mesh_io.gltf_document import parse_document
from pgc3d.mesh_io.limits import read_limited

COUNTED = ("nodes", "meshes", "materials", "skins", "animations", "cameras", "accessors", "images")
# what a new image may change: the base colour of materials, coordinates and vertices at their seams
ALLOWED = re.compile(
    r"asset\.extras.*|lines vt|material .*"
    r"|materials\[\d+\](\.pbrMetallicRoughness)?(\.baseColor.*)?"
    r"|materials\[\d+\]\.(emissiveTexture|extensions\.KHR_materials_pbrSpecularGlossiness)\..*"
    r"|meshes\[\d+\]\.primitives\[\d+\]\.attributes\.(TEXCOORD_\d+|_?COLOR_0)"
    r"|meshes\[\d+\]\.primitives\[\d+\]\.material"
)


def is_allowed(item: Difference) -> bool:
    """Whether texturing may make a difference."""
    return item.kind in ("extended", "split") or ALLOWED.fullmatch(item.place) is not None


def summary(path: Path) -> str:
    """Numbers of a glTF's contents."""
    root = parse_document(read_limited(path), path).root
    return ", ".join(f"{len(found)} {key}" for key in COUNTED if (found := root.entries(key)))


def grouped(found: Sequence[Difference]) -> list[str]:
    """The differences with those of like places together."""
    counts = Counter((item.kind, re.sub(r"\[\d+\]", "[]", item.place)) for item in found)
    return [
        f"{kind:9}{place}{f'  x {number}' if number > 1 else ''}" for (kind, place), number in counts.items()
    ]


def main() -> None:
    """Compare two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--all", action="store_true", help="list each difference")
    options = parser.parse_args()
    is_obj = options.first.suffix.lower() == ".obj"
    found = (compare_objs if is_obj else compare_documents)(options.first, options.second)
    lost = [item for item in found if not is_allowed(item)]
    lines = [] if is_obj else [f"{path.name}: {summary(path)}" for path in (options.first, options.second)]
    lines += [f"{item.kind:9}{item.place}" for item in found] if options.all else grouped(found)
    lines.append(f"{len(found)} differences, {len(lost)} of what must stay")
    lines += [f"must stay: {item.kind} {item.place}" for item in lost]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
