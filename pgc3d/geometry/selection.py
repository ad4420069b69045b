"""Faces of a mesh by the names of its nodes and materials."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from jaxtyping import Bool
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.types import FaceLabels


def select_faces(
    labels: FaceLabels | None, *, only: Sequence[str] = (), keep: Sequence[str] = ()
) -> Bool[Tensor, " F"]:
    """The faces to be textured: those of `only` (all when empty) that `keep` does not name.

    Args:
        labels: of the mesh's faces; None for a mesh without nodes and materials.
        only: names of nodes or materials, or patterns with *, ? and [...]; a node includes those below it.
        keep: likewise.

    Raises:
        InputError: a name or pattern fits nothing that has faces, or no face remains.
    """
    if labels is None:
        raise InputError(
            "--only and --keep must go with a mesh of nodes or materials, but this file format has neither; "
            "remove them, or export the mesh as glb or obj"
        )
    chosen = torch.ones_like(labels.node, dtype=torch.bool)
    if only:
        chosen = torch.stack([_named(labels, name, "--only") for name in only]).any(dim=0)
    for name in keep:
        chosen &= ~_named(labels, name, "--keep")
    if not bool(chosen.any()):
        raise InputError("--only and --keep must leave faces to be textured, got none; name fewer parts")
    return chosen


def _named(labels: FaceLabels, pattern: str, option: str) -> Bool[Tensor, " F"]:
    """The faces of all nodes and materials that a pattern fits."""
    nodes = [_fits(name, pattern) for name in labels.nodes]
    for index in range(len(nodes)):
        nodes[index] = any(nodes[place] for place in _ancestry(labels, index))
    materials = [_fits(name, pattern) for name in labels.materials]
    # the last row stands for -1: faces of no node or no material
    chosen = torch.tensor([*nodes, False])[labels.node.cpu()]
    chosen |= torch.tensor([*materials, False])[labels.material.cpu()]
    if not bool(chosen.any()):
        raise InputError(
            f"{option} must name a node or a material with faces, got {pattern!r}; "
            f"{_nearest(labels, pattern)}"
        )
    return chosen.to(labels.node.device)


def _ancestry(labels: FaceLabels, node: int) -> list[int]:
    """A node and those above it."""
    line: list[int] = []
    while node >= 0 and node not in line:
        line.append(node)
        node = labels.parents[node]
    return line


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _nearest(labels: FaceLabels, pattern: str) -> str:
    """The nearest names for an error message; the first ones where none is near."""
    used = {place for node in torch.unique(labels.node).tolist() for place in _ancestry(labels, node)}
    names = [labels.nodes[place] for place in sorted(used)]
    names += [labels.materials[place] for place in torch.unique(labels.material).tolist() if place >= 0]
    names = list(dict.fromkeys(names))
    folded = {name.casefold(): name for name in reversed(names)}
    close = [folded[name] for name in difflib.get_close_matches(pattern.casefold(), list(folded), n=3)]
    if not names:
        return "this mesh has none; remove it"
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"there are {', '.join(map(repr, names[:6]))}{' ...' if len(names) > 6 else ''}"
