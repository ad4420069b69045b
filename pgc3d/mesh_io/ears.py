"""Triangulation of one non-convex polygon by ear clipping, the ear of the best shape first."""

import heapq
from bisect import bisect_left, bisect_right

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

TINY = 1e-12  # of the product of two lengths: what counts as no area
MANY = 48  # corners in reach from which numpy is quicker than a loop
SEARCHES = 8  # for ears in a polygon that has lost its last one
FORCED = 64  # cuts in a polygon that crosses itself, before the rest becomes a fan


def clip_ears(points: Float[np.ndarray, "N 2"]) -> Int[np.ndarray, "T 3"]:
    """The N - 2 triangles of a counter-clockwise polygon, as indices of its corners.

    Where the polygon is simple, or touches itself only as the bridge to a hole does, all triangles are
    counter-clockwise and cover it exactly. Other polygons get N - 2 triangles too.
    """
    low = points.min(axis=0)
    size = float((points.max(axis=0) - low).max()) or 1.0
    return np.array(_Ring((points - low) / size).clip(), dtype=np.int64).reshape(-1, 3)


class _Ring:
    """The remaining corners as a circular linked list, and a heap of the ears among them."""

    def __init__(self, points: NDArray[np.float64]) -> None:
        count = len(points)
        self.x: list[float] = points[:, 0].tolist()
        self.y: list[float] = points[:, 1].tolist()
        self.before = [(k - 1) % count for k in range(count)]
        self.after = [(k + 1) % count for k in range(count)]
        self.alive = [True] * count
        self.stamp = [0] * count
        # only corners that turn inwards can lie in an ear, and clipping makes no new ones
        self.reflex = [self.shape(k) <= TINY for k in range(count)]
        inward = sorted((k for k in range(count) if self.reflex[k]), key=self.x.__getitem__)
        self.inward = np.array(inward, dtype=np.int64)
        self.inward_x = [self.x[k] for k in inward]
        self.inward_points = points[self.inward]
        self.heap: list[tuple[float, int, int]] = []

    def clip(self) -> list[tuple[int, int, int]]:
        left, triangles = len(self.x), []
        searches, forced = SEARCHES, FORCED
        self.search()
        while left > 3:
            ear = self.pop()
            if ear is None and searches:
                searches -= 1
                self.search()
                ear = self.pop()
            if ear is None:
                if not forced:
                    break
                forced -= 1
                ear = self.least_harm()
            triangles.append((self.before[ear], ear, self.after[ear]))
            self.remove(ear)
            left -= 1
        return triangles + self.fan(left)

    def search(self) -> None:
        for k in range(len(self.x)):
            if self.alive[k]:
                self.push(k)

    def pop(self) -> int | None:
        while self.heap:
            _, stamp, corner = heapq.heappop(self.heap)
            if self.alive[corner] and self.stamp[corner] == stamp:
                return corner
        return None

    def push(self, corner: int) -> None:
        self.stamp[corner] += 1
        shape = self.shape(corner)
        self.reflex[corner] = shape <= TINY
        if shape > TINY and not self.blocked(corner):
            heapq.heappush(self.heap, (-shape, self.stamp[corner], corner))

    def remove(self, ear: int) -> None:
        a, c = self.before[ear], self.after[ear]
        self.alive[ear] = False
        self.after[a], self.before[c] = c, a
        self.push(a)
        self.push(c)

    def fan(self, left: int) -> list[tuple[int, int, int]]:
        first = self.alive.index(True)
        triangles, corner = [], self.after[first]
        for _ in range(left - 2):
            triangles.append((first, corner, self.after[corner]))
            corner = self.after[corner]
        return triangles

    def least_harm(self) -> int:
        """Without ears: a corner that cuts off no area where there is one, else the one that turns most."""
        shapes = [(abs(shape) > TINY, -shape, k) for k in self.corners() for shape in [self.shape(k)]]
        return min(shapes)[2]

    def corners(self) -> list[int]:
        return [k for k, alive in enumerate(self.alive) if alive]

    def side(self, a: int, b: int, p: int) -> float:
        """Twice the area of the triangle: above 0 where p lies left of the line from a to b."""
        x, y = self.x, self.y
        return (x[b] - x[a]) * (y[p] - y[a]) - (y[b] - y[a]) * (x[p] - x[a])

    def shape(self, b: int) -> float:
        """Of the triangle at b: its area over the squares of its sides, below 0 where b turns inwards."""
        a, c, x, y = self.before[b], self.after[b], self.x, self.y
        sides = (x[b] - x[a]) ** 2 + (y[b] - y[a]) ** 2 + (x[c] - x[b]) ** 2 + (y[c] - y[b]) ** 2
        return self.side(a, b, c) / sides if sides else 0.0

    def blocked(self, b: int) -> bool:
        """Whether the polygon enters the triangle at b or touches the side that a cut would make."""
        a, c, x, y = self.before[b], self.after[b], self.x, self.y
        xs, ys = (x[a], x[b], x[c]), (y[a], y[b], y[c])
        low_y, high_y = min(ys), max(ys)
        near = TINY * (max(xs) - min(xs) + high_y - low_y) ** 2
        reach = slice(bisect_left(self.inward_x, min(xs)), bisect_right(self.inward_x, max(xs)))
        for p in self.candidates(a, b, c, near, reach):
            matters = self.reflex[p] and self.alive[p] and low_y <= y[p] <= high_y and p not in (a, b, c)
            if matters and self.blocks(p, a, b, c, near):
                return True
        return False

    def candidates(self, a: int, b: int, c: int, near: float, reach: slice) -> list[int]:
        candidates = self.inward[reach]
        if len(candidates) > MANY:
            px, py = self.inward_points[reach].T
            inside = np.ones(len(candidates), dtype=bool)
            for u, v in ((a, b), (b, c), (c, a)):
                ux, uy = self.x[u], self.y[u]
                inside &= (self.x[v] - ux) * (py - uy) - (self.y[v] - uy) * (px - ux) >= -near
            candidates = candidates[inside]
        corners: list[int] = candidates.tolist()
        return corners

    def blocks(self, p: int, a: int, b: int, c: int, near: float) -> bool:
        ab, bc, ca = self.side(a, b, p), self.side(b, c, p), self.side(c, a, p)
        if min(ab, bc, ca) < -near:
            return False
        if min(ab, bc) > near:  # inside, or on the new side
            return not self.same(p, a) and not self.same(p, c)
        if self.same(p, a) or self.same(p, c):
            return False
        # on an old side or at b: it matters only where an edge of p leads inwards from there
        for q in (self.before[p], self.after[p]):
            if (ab > near or self.side(a, b, q) > near) and (bc > near or self.side(b, c, q) > near):
                return True
        return False

    def same(self, p: int, q: int) -> bool:
        return self.x[p] == self.x[q] and self.y[p] == self.y[q]
