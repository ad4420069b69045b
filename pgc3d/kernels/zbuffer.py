"""The rules by which `zbuffer_numba` and `zbuffer_triton` decide what is visible: both see the same.

Triangles are tested at pixel centres with homogeneous edge functions (Olano and Greer 1997, "Triangle scan
conversion using 2D homogeneous coordinates"), so triangles that cross the camera plane need no clipping. Edge
coefficients are float64 cross products: those of a shared edge are exactly opposite, which is why no pixel
falls between two neighbours; a centre on the edge belongs to both. Nothing is culled by orientation. Depth
z/w in [-1, 1] is compared in whole steps, and the lowest index wins a tie.
"""

DEPTH_STEPS = float(2**30 - 1)  # between z/w = -1 and 0; twice as many fit into 31 bits
BOUNDS_MARGIN = 1e-4  # pixels; covers the rounding of x / w, which the exact edge test never sees
