"""pgc3d: textured 3D assets from prompts, pictures and meshes, by score distillation with clipped gradients.

Importing the package is cheap: `from pgc3d import pgc` loads the clipping rules, torch and jaxtyping.
The library's entry points are `pgc3d.pipeline.generate`, `resume`, `export` and `render`.
"""

__version__ = "0.1.0"
