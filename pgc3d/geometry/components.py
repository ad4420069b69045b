"""Connected components of a triangle mesh."""

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

Index = NDArray[np.int64]


def components(faces: Int[np.ndarray, "F 3"], count: int) -> Int[np.ndarray, " count"]:
    """Smallest vertex index of the connected component that each of `count` vertices belongs to."""
    labels = np.arange(count)
    first, second = faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel()
    while True:
        low = np.minimum(labels[first], labels[second])
        parents = labels.copy()
        np.minimum.at(parents, labels[first], low)
        np.minimum.at(parents, labels[second], low)
        while not np.array_equal(parents, parents[parents]):
            parents = parents[parents]
        merged = parents[labels]
        if np.array_equal(merged, labels):
            return labels
        labels = merged
