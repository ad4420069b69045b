"""Transforms of a mesh's vertices by its node, its instances or its skin."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_accessor import read_floats
from pgc3d.mesh_io.gltf_document import Document
from pgc3d.mesh_io.gltf_primitive import Block, Floats
from pgc3d.mesh_io.gltf_scene import Scene

CHUNK = 1 << 16  # vertices at once: bounds the memory of their matrices


@dataclass(frozen=True)
class Placed:
    """Vertices in the scene; `mirrored` where the winding of a vertex's faces must be reversed."""

    positions: Float[np.ndarray, "V 3"]
    normals: Float[np.ndarray, "V 3"] | None  # unit, or 0 where the file has none that can be used
    mirrored: Bool[np.ndarray, " V"]


def joint_matrices(document: Document, skin: int, scene: Scene) -> Float[np.ndarray, "J 4 4"]:
    """Matrices from the mesh to the scene for each joint of a skin, in the pose of the nodes.

    Raises:
        InputError: a joint is missing, or the inverse bind matrices do not fit.
    """
    entry = document.skins[skin]
    joints = entry.indices("joints", len(document.nodes))
    if not joints:
        raise entry.error("joints", "a list of nodes")
    matrices = scene.matrices[joints]
    index = entry.index("inverseBindMatrices", len(document.accessors))
    if index is None:
        return matrices
    stored = read_floats(document, index, ("MAT4",), rows=len(joints)).reshape(-1, 4, 4)
    poses: Floats = matrices @ stored.transpose(0, 2, 1)
    return poses


def skinned(document: Document, block: Block, joints: Float[np.ndarray, "J 4 4"]) -> Placed:
    """The vertices transformed by their joints; the node of a skinned mesh has no effect.

    Raises:
        InputError: a vertex names a joint that the skin lacks.
    """
    if block.joints is None or block.weights is None:
        raise ValueError("the block has no joints")
    used = block.weights != 0
    if used.any() and int(block.joints[used].max()) >= len(joints):
        raise InputError(
            f"the joints of a skin must exist, got number {int(block.joints[used].max())} of {len(joints)} "
            f"in {document.path.name}; export it again"
        )
    places = np.where(used, block.joints, 0)
    total = block.weights.sum(axis=1, keepdims=True)
    first = np.eye(1, block.weights.shape[1])  # all by the first joint where nothing weighs
    shares = np.where(total > 0, block.weights / np.where(total > 0, total, 1.0), first)
    parts = [
        _apply(np.einsum("vk,vkij->vij", shares[rows], joints[places[rows]]), block, rows)
        for rows in (slice(start, start + CHUNK) for start in range(0, len(places), CHUNK))
    ]
    return _joined(parts, with_normals=block.normals is not None)


def placed(block: Block, matrix: Float[np.ndarray, "4 4"]) -> Placed:
    """The vertices transformed by one matrix."""
    if np.array_equal(matrix, np.eye(4)):
        normals = None if block.normals is None else _unit(block.normals)
        return Placed(block.positions, normals, np.zeros(len(block.positions), dtype=bool))
    parts = [
        _apply(matrix[None], block, slice(start, start + CHUNK))
        for start in range(0, len(block.positions), CHUNK)
    ]
    return _joined(parts, with_normals=block.normals is not None)


def copied(block: Block, matrices: Float[np.ndarray, "K 4 4"]) -> Placed:
    """The vertices once for each matrix, copy by copy."""
    count, parts = len(block.positions), []
    for start in range(0, count * len(matrices), CHUNK):
        copy, vertex = np.divmod(np.arange(start, min(start + CHUNK, count * len(matrices))), count)
        normals = None if block.normals is None else block.normals[vertex]
        some = Block(block.positions[vertex], normals, None, None, None)
        parts.append(_apply(matrices[copy], some, slice(None)))
    return _joined(parts, with_normals=block.normals is not None)


def moved(first: Placed, matrix: Float[np.ndarray, "4 4"]) -> Placed:
    """Transformed vertices with one more matrix applied."""
    again = placed(Block(first.positions, first.normals, None, None, None), matrix)
    return Placed(again.positions, again.normals, again.mirrored ^ first.mirrored)


def _apply(matrices: Floats, block: Block, rows: slice) -> Placed:
    """Matrices [V, 4, 4] or [1, 4, 4] applied to vertices; normals by the matrix of cofactors."""
    linear = matrices[:, :3, :3]
    positions = block.positions[rows]
    matrices = np.broadcast_to(matrices, (len(positions), 4, 4))
    points = np.einsum("vij,vj->vi", matrices[:, :3, :3], positions) + matrices[:, :3, 3]
    x, y, z = linear[:, :, 0], linear[:, :, 1], linear[:, :, 2]
    # the inverse transpose times the determinant, which exists for a flat matrix too
    cofactors = np.stack([_cross(y, z), _cross(z, x), _cross(x, y)], axis=2)
    mirrored = (x * cofactors[:, :, 0]).sum(axis=1) < 0
    normals = None
    if block.normals is not None:
        sign = np.where(mirrored, -1.0, 1.0)[:, None]
        turned = np.broadcast_to(cofactors, (len(positions), 3, 3))
        normals = _unit(sign * np.einsum("vij,vj->vi", turned, block.normals[rows]))
    return Placed(points, normals, np.broadcast_to(mirrored, len(positions)))


def _cross(a: Floats, b: Floats) -> Floats:
    """Cross products [V, 3]; numpy's own takes long for a few rows, and a scene may have many nodes."""
    after, before = [1, 2, 0], [2, 0, 1]
    product: Floats = a[:, after] * b[:, before] - a[:, before] * b[:, after]
    return product


def _unit(normals: Floats) -> Floats:
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    usable = np.isfinite(length) & (length > 1e-30)
    return np.where(usable, normals / np.where(usable, length, 1.0), 0.0)


def _joined(parts: list[Placed], *, with_normals: bool) -> Placed:
    if not parts:
        return Placed(np.zeros((0, 3)), np.zeros((0, 3)) if with_normals else None, np.zeros(0, dtype=bool))
    normals = [part.normals for part in parts if part.normals is not None]
    return Placed(
        positions=np.concatenate([part.positions for part in parts]),
        normals=np.concatenate(normals) if with_normals else None,
        mirrored=np.concatenate([part.mirrored for part in parts]),
    )
