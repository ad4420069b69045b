"""Compile every Triton kernel for an H100, which needs no GPU; prints what each one is made of."""

import collections
import re
from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pgc3d.kernels import color_field_triton as color
from pgc3d.kernels import compose_triton as compose
from pgc3d.kernels import composite_triton as composite
from pgc3d.kernels import hash_grid_triton as grid
from pgc3d.kernels import silhouette_triton as silhouette
from pgc3d.kernels import zbuffer_triton as zbuffer

F32, I32, I64 = "*fp32", "*i32", "*i64"
GRID = {"LEVELS": 8, "WIDTH": 2, "BLOCK": 128}
FIELD = {"LEVELS": 8, "WIDTH": 2, "PADDED": 16, "HIDDEN": 32, "BLOCK": 32, "GROUP": 1, "num_warps": 1}
WIDE_FIELD = {"LEVELS": 16, "WIDTH": 4, "PADDED": 64, "HIDDEN": 64, "BLOCK": 32, "GROUP": 8, "num_warps": 8}
INPUTS = dict.fromkeys(("points", "table", "hidden_weight", "hidden_bias", "weight", "bias"), F32)
COLORS = {**INPUTS, "parameters": I32, "scratch": F32, "colors": F32}
COLOR_GRADIENTS = {**INPUTS, "parameters": I32, "gradient": F32, "pull": F32, "partial": F32}
PICTURE = dict.fromkeys(("vertex_count", "height", "width", "pixel_count"), "i32")
MESH = {"clip": F32, "faces": I64}
MIX = {"attributes": F32, "data": F32, "faces": I64}
CHANNELS = {"CHANNELS": 8, "BLOCK": 128}
PLACES = dict.fromkeys(("places", "color", "data", "key", "camera", "background", "image", "depth"), F32)
PULLS = {**PLACES, **dict.fromkeys(("of_image", "of_depth", "of_places", "of_color"), F32)}
RAYS = {"start": I64, "count": I64}
VOLUME = {**dict.fromkeys(("depth", "values", "sums", "left"), F32), **RAYS}
VOLUME_PULLS = {
    **VOLUME,
    **dict.fromkeys(("sums_gradient", "left_gradient", "of_depth", "of_values"), F32),
}
EDGES = {"clip": F32, "edges": I64, "best": I64, "image": F32}
KERNELS: list[tuple[Any, Mapping[str, str], Mapping[str, int]]] = [
    (color._forward, COLORS, FIELD),
    (color._backward, COLOR_GRADIENTS, FIELD),
    (color._forward, COLORS, WIDE_FIELD),
    (color._backward, COLOR_GRADIENTS, WIDE_FIELD),
    (compose._forward, PLACES, {"SHADING": True, "BLOCK": 128}),
    (compose._backward, PULLS, {"SHADING": True, "PLACES": True, "DEPTH": True, "BLOCK": 128}),
    (compose._backward, PULLS, {"SHADING": False, "PLACES": False, "DEPTH": False, "BLOCK": 128}),
    (composite._forward, VOLUME, {"CHANNELS": 4, "WIDTH": 4, "BLOCK": composite.BLOCK}),
    (composite._backward, VOLUME_PULLS, {"CHANNELS": 7, "WIDTH": 8, "BLOCK": composite.BLOCK}),
    (grid._forward, {"points": F32, "table": F32, "parameters": I32, "features": F32}, GRID),
    (
        grid._backward_table,
        {"gradient": F32, "points": F32, "parameters": I32, "table_gradient": F32},
        {**GRID, "BLOCK": 32, "num_warps": 1},
    ),
    (
        grid._backward_points,
        {"gradient": F32, "points": F32, "table": F32, "parameters": I32, "point_gradient": F32},
        GRID,
    ),
    (
        silhouette._find,
        {"clip": F32, "data": F32, "edges": I64, "opposite": I64, "best": I64, **PICTURE},
        {"BLOCK": 128},
    ),
    (silhouette._blend, {**EDGES, "output": F32, **PICTURE}, {"BLOCK": 512}),
    (
        silhouette._blend_backward,
        {**EDGES, "gradient": F32, "grad_image": F32, "grad_clip": F32, **PICTURE},
        {"BLOCK": 512},
    ),
    (zbuffer._bound, {**MESH, "boxes": I32, "counts": I32}, {"PIXELS": 16, "BLOCK": 128}),
    (zbuffer._fill, {**MESH, "boxes": I32, "ends": I64, "keys": I64}, {"PIXELS": 16, "BLOCK": 128}),
    (zbuffer._resolve, {**MESH, "keys": I64, "data": F32}, {"BLOCK": 128}),
    (zbuffer._resolve_backward, {**MESH, "gradient": F32, "data": F32, "grad_clip": F32}, {"BLOCK": 128}),
    (zbuffer._interpolate, {**MIX, "output": F32}, CHANNELS),
    (
        zbuffer._interpolate_backward,
        {**MIX, "gradient": F32, "grad_attributes": F32, "grad_data": F32},
        {**CHANNELS, "NEEDED": True},
    ),
]


def _compile(kernel: Any, types: Mapping[str, str], constants: Mapping[str, int]) -> None:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
    values = {(names.index(name),): value for name, value in constants.items() if name in names}
    options = {"num_warps": constants.get("num_warps", 4)}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    pattern = r"\b((?:ld\.global|st\.global|atom|red|ld\.shared|st\.shared|bar\.sync)[\w.]*)"
    found = collections.Counter(re.findall(pattern, compiled.asm["ptx"]))
    print(f"{kernel.__module__}.{kernel.__name__}: {dict(found)}, {compiled.metadata.shared} bytes shared")


if __name__ == "__main__":
    for entry in KERNELS:
        _compile(*entry)
