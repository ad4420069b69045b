"""Connected components of a mask: numba kernels for the CPU, in time linear in the pixels.

Two passes with a union-find over the pixels of the first one; the smaller number is always the parent, so
that labels are in the order of the regions' first pixels. `no_type_check` keeps run-time type checkers from
wrapping what numba compiles.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Int32
from numpy.typing import NDArray

from pgc3d.kernels.compiled import compiled


def label_regions(mask: Bool[np.ndarray, "H W"], *, diagonal: bool) -> tuple[Int32[np.ndarray, "H W"], int]:
    """Number the connected regions of a mask from 1; 0 where the mask is not set.

    Args:
        mask: the pixels of the components.
        diagonal: whether pixels that share a corner alone are connected.

    Returns:
        The labels and the number of components.
    """
    labels, count = _label(np.ascontiguousarray(mask), diagonal)
    return labels, int(count)


def connected_to_border(region: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The pixels of a mask that are 4-connected to the border of the image."""
    labels, count = label_regions(region, diagonal=False)
    touching = np.zeros(count + 1, dtype=np.bool_)
    for line in (labels[:1], labels[-1:], labels[:, :1], labels[:, -1:]):
        touching[line] = True
    touching[0] = False
    reached: NDArray[np.bool_] = touching[labels]
    return reached


def distance(mask: Bool[np.ndarray, "H W"]) -> Int32[np.ndarray, "H W"]:
    """Steps along rows, columns and diagonals to the nearest pixel of a mask that is not empty."""
    steps: NDArray[np.int32] = _distance(np.ascontiguousarray(mask))
    return steps


@compiled()
@no_type_check
def _find(parents, label):
    while parents[label] != label:
        parents[label] = parents[parents[label]]
        label = parents[label]
    return label


@compiled()
@no_type_check
def _join(parents, first, second):
    first, second = _find(parents, first), _find(parents, second)
    parents[max(first, second)] = min(first, second)
    return min(first, second)


@compiled()
@no_type_check
def _label(mask, diagonal):
    height, width = mask.shape
    labels = np.zeros((height, width), np.int32)
    # A new label has neither a left nor an upper neighbour in the mask: at most every second pixel.
    parents = np.zeros((height * width + 1) // 2 + 2, np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:
                continue
            label = labels[y, x - 1] if x > 0 else 0
            if y > 0:
                for column in range(x - 1, x + 2):
                    if column < 0 or column >= width or (column != x and not diagonal):
                        continue
                    above = labels[y - 1, column]
                    if above > 0 and label == 0:
                        label = above
                    elif above > 0 and above != label:
                        label = _join(parents, label, above)
            if label == 0:
                count += 1
                label = count
                parents[label] = label
            labels[y, x] = label
    return _renumber(labels, parents, count)


@compiled()
@no_type_check
def _renumber(labels, parents, count):
    """Give every pixel its root's number; the roots are numbered without gaps."""
    names = np.zeros(count + 1, np.int32)
    regions = 0
    for label in range(1, count + 1):
        if parents[label] == label:
            regions += 1
            names[label] = regions
        else:
            names[label] = names[_find(parents, label)]  # the root is smaller, so it has its name
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            labels[y, x] = names[labels[y, x]]
    return labels, regions


@compiled()
@no_type_check
def _distance(mask):
    """Two passes, each from the three neighbours in the line before and the one beside."""
    height, width = mask.shape
    steps = np.full((height + 2, width + 2), 2 * (height + width), np.int32)
    for y in range(1, height + 1):
        for x in range(1, width + 1):
            before = min(steps[y - 1, x - 1], steps[y - 1, x], steps[y - 1, x + 1], steps[y, x - 1])
            steps[y, x] = 0 if mask[y - 1, x - 1] else before + 1
    for y in range(height, 0, -1):
        for x in range(width, 0, -1):
            before = min(steps[y + 1, x - 1], steps[y + 1, x], steps[y + 1, x + 1], steps[y, x + 1])
            steps[y, x] = min(steps[y, x], before + 1)
    return steps[1:-1, 1:-1].copy()
