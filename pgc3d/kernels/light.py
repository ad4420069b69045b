"""Numbers of the light and of sRGB; `render.shading` states the formulas, the kernels repeat them."""

AMBIENT, KEY, SKY = 0.45, 0.45, 0.10  # fractions of the light

# IEC 61966-2-1: a line up to the knee, above it a power of GAMMA
SRGB_KNEE, LINEAR_KNEE = 0.04045, 0.0031308
SLOPE, OFFSET, GAMMA = 12.92, 0.055, 2.4
