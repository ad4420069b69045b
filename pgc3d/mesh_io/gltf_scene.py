"""The meshes of a glTF file's default scene and the transforms of their nodes."""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_accessor import count, read_floats
from pgc3d.mesh_io.gltf_document import Document, Entry
from pgc3d.mesh_io.limits import MAX_FACES, require_counts

Matrix = NDArray[np.float64]  # [4, 4], scene from local coordinates

INSTANCING = "EXT_mesh_gpu_instancing"
PARTS = {
    "TRANSLATION": ("VEC3", (0.0, 0, 0)),
    "ROTATION": ("VEC4", (0.0, 0, 0, 1)),
    "SCALE": ("VEC3", (1.0, 1, 1)),
}


@dataclass(frozen=True)
class Shown:
    """A mesh at one node, with its instances."""

    mesh: int
    matrix: Float[np.ndarray, "4 4"]
    weights: tuple[float, ...] | None  # of the morph targets, where the node has its own
    skin: int | None
    instances: Entry | None  # the attributes of EXT_mesh_gpu_instancing
    copies: int = 1
    node: int = -1  # -1 in a file without nodes


@dataclass(frozen=True)
class Scene:
    """The contents of the default scene."""

    shown: tuple[Shown, ...]
    matrices: Float[np.ndarray, "nodes 4 4"]  # of all nodes of the file
    nodes: int  # with a mesh, seen or hidden
    hidden: int  # nodes with a mesh that are not visible
    parents: tuple[int, ...]  # of all nodes, -1 for roots


def read_scene(document: Document) -> Scene:
    """The default scene; the first one where none is named, and all nodes where there is none.

    Raises:
        InputError: the nodes are no trees, or something in them has a wrong type.
    """
    children = [node.indices("children", len(document.nodes)) for node in document.nodes]
    order, roots = _order(document, children)
    matrices = np.tile(np.eye(4), (len(document.nodes), 1, 1))
    visible = np.ones(len(document.nodes), dtype=bool)
    for parent, index in order:
        node = document.nodes[index]
        matrices[index] = _local(node) if parent is None else matrices[parent] @ _local(node)
        setting = node.extension("KHR_node_visibility")
        here = setting is None or setting.flag("visible", default=True)
        visible[index] = here and (parent is None or visible[parent])
    if not document.nodes:  # a library of meshes
        shown = [Shown(mesh, np.eye(4), None, None, None) for mesh in range(len(document.meshes))]
        return Scene(tuple(shown), matrices, 0, 0, ())
    reached = list(_below(_scene_roots(document, roots), children))
    with_mesh = [index for index in reached if "mesh" in document.nodes[index]]
    return Scene(
        shown=tuple(_shown(document, index, matrices[index]) for index in with_mesh if visible[index]),
        matrices=matrices,
        nodes=len(with_mesh),
        hidden=sum(not visible[index] for index in with_mesh),
        parents=tuple(-1 if parent is None else parent for parent, _ in sorted(order, key=itemgetter(1))),
    )


def _order(document: Document, children: list[list[int]]) -> tuple[list[tuple[int | None, int]], list[int]]:
    """Pairs of parent and node, parents first, and the roots."""
    parents: list[int | None] = [None] * len(children)
    for parent, below in enumerate(children):
        for child in below:
            if parents[child] is not None or child == parent:
                raise _no_tree(document, child)
            parents[child] = parent
    roots = [index for index, parent in enumerate(parents) if parent is None]
    order = [(parents[index], index) for index in _below(roots, children)]
    if len(order) < len(children):
        missing = set(range(len(children))) - {index for _, index in order}
        raise _no_tree(document, min(missing))
    return order, roots


def _no_tree(document: Document, node: int) -> InputError:
    return InputError(
        f"the nodes of a glTF file must be trees, but nodes[{node}] of {document.path.name} hangs below two "
        "nodes or below itself; export it again"
    )


def _below(roots: list[int], children: list[list[int]]) -> Iterator[int]:
    """The roots and all their descendants, in the file's order, each once."""
    seen, waiting = set(), list(reversed(roots))
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            yield index
            waiting += reversed(children[index])


def _scene_roots(document: Document, roots: list[int]) -> list[int]:
    scenes = document.root.entries("scenes")
    if not scenes:
        return roots
    return scenes[document.root.index("scene", len(scenes)) or 0].indices("nodes", len(document.nodes))


def _local(node: Entry) -> Matrix:
    values = node.numbers("matrix", 16)
    if values is not None:
        matrix = np.array(values).reshape(4, 4).T  # stored by columns
        matrix[3] = (0, 0, 0, 1)
        return matrix
    translation, rotation, scale = (
        node.numbers("translation", 3),
        node.numbers("rotation", 4),
        node.numbers("scale", 3),
    )
    if translation is None and rotation is None and scale is None:
        return np.eye(4)
    parts = [
        np.array([PARTS[name][1] if part is None else part], dtype=np.float64)
        for name, part in zip(PARTS, (translation, rotation, scale), strict=True)
    ]
    composed: Matrix = compose(*parts)[0]
    return composed


def compose(
    translation: Float[np.ndarray, "N 3"],
    rotation: Float[np.ndarray, "N 4"],
    scale: Float[np.ndarray, "N 3"],
) -> Float[np.ndarray, "N 4 4"]:
    """Matrices from translations, quaternions (x, y, z, w; of any length but 0) and scales."""
    length = np.linalg.norm(rotation, axis=1, keepdims=True)
    x, y, z, w = np.where(length > 1e-12, rotation / np.maximum(length, 1e-12), (0, 0, 0, 1.0)).T
    matrix = np.tile(np.eye(4), (len(translation), 1, 1))
    matrix[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], axis=1)
    matrix[:, 1, :3] = np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], axis=1)
    matrix[:, 2, :3] = np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], axis=1)
    matrix[:, :3, :3] *= scale[:, None]
    matrix[:, :3, 3] = translation
    return matrix


def _shown(document: Document, index: int, matrix: Matrix) -> Shown:
    node = document.nodes[index]
    mesh = node.index("mesh", len(document.meshes))
    weights, instancing = node.numbers("weights", None), node.extension(INSTANCING)
    attributes = None if instancing is None else instancing.entry("attributes")
    copies = 1
    if attributes is not None:
        numbers = [attributes.index(name, len(document.accessors)) for name in PARTS]
        counts = [count(document, number) for number in numbers if number is not None]
        copies = max(counts, default=1)
    return Shown(
        mesh=mesh or 0,
        matrix=matrix,
        weights=None if weights is None else tuple(weights),
        skin=node.index("skin", len(document.skins)),
        instances=attributes,
        copies=copies,
        node=index,
    )


def placements(document: Document, shown: Shown) -> Float[np.ndarray, "copies 4 4"]:
    """Matrices of the copies of a mesh.

    Raises:
        InputError: the attributes of its instances do not fit.
    """
    if shown.instances is None:
        return shown.matrix[None]
    if shown.copies > MAX_FACES:  # each has a face at least
        require_counts(document.path, faces=shown.copies)
    parts = []
    for name, (kind, default) in PARTS.items():
        index = shown.instances.index(name, len(document.accessors))
        if index is None:
            parts.append(np.tile(np.array(default), (shown.copies, 1)))
        else:
            parts.append(read_floats(document, index, (kind,), rows=shown.copies))
    matrices: Matrix = shown.matrix @ compose(*parts)
    return matrices
