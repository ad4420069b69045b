"""`pgc3d inspect`: the contents of a mesh file."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pgc3d.cli.console import deliver, plain_line

MOST = 40  # lines of a list


def inspect(
    mesh: Annotated[Path, typer.Argument(metavar="MESH", help="A glb, gltf, obj, ply or stl file.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    everything: Annotated[bool, typer.Option("--all", help=f"Lists of more than {MOST} lines too.")] = False,
) -> int:
    """Print the nodes, materials and textures of a mesh, and what texturing keeps of them."""
    from pgc3d.inputs.inspection import inspect_mesh
    from pgc3d.rendering.cpu import CpuRasterizer

    report = inspect_mesh(mesh, rasterizer=CpuRasterizer())
    if as_json:
        deliver(json.dumps(asdict(report), indent=2, allow_nan=False) + "\n")
        return 0
    lines = _lines(report, most=None if everything else MOST)
    deliver("".join(f"{plain_line(line)}\n" for line in lines))
    return 0


def _lines(report: Any, *, most: int | None) -> Iterator[str]:
    from pgc3d.inputs.inspection import tree_lines

    size = " x ".join(f"{side:.4g}" for side in report.size)
    yield f"{report.file}: {report.triangles} triangles, {report.vertices} vertices, size {size}"
    materials = []
    for item in report.materials:
        facts = [f"{item.triangles} triangles", f"coordinates {item.coordinates}", item.details]
        materials.append(f"{item.name}: {'; '.join(fact for fact in facts if fact)}")
    verdict = [*report.sets, f"for the textures of all faces: {report.coordinates}"]
    for title, items in (
        ("nodes", tree_lines(report.nodes)),
        ("materials", materials),
        ("texture coordinates", verdict),
        ("images", report.images),
        ("skins, animations and others", report.others),
        ("kept by texturing", report.kept),
        ("changed by texturing", report.changed),
        ("lost by texturing", report.lost),
        ("notes", report.notes),
    ):
        yield from _section(title, list(items), most)


def _section(title: str, items: list[str], most: int | None) -> Iterable[str]:
    if not items:
        return []
    shown = items if most is None or len(items) <= most else items[: most - 1]
    more = [f"  ... {len(items) - len(shown)} more; --all prints them"] if len(shown) < len(items) else []
    return ["", title, *(f"  {item}" for item in shown), *more]
