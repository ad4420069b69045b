"""The values that settings and options accept, each list defined once; cheap to import."""

from typing import Literal, TypeAlias

Backend: TypeAlias = Literal["auto", "nvdiffrast", "triton", "cpu"]  # rasterisers
Baseline: TypeAlias = Literal["hull", "billboard"]  # methods that the result of an image is compared with
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Format: TypeAlias = Literal["glb", "gltf", "obj", "ply", "stl", "usdz"]  # of mesh files that are written
Frame: TypeAlias = Literal["own", "shared"]  # how a result is aligned with the ground truth
GuidanceName: TypeAlias = Literal["auto", "mini", "sdxl", "sd", "zero123"]
TextGuidanceName: TypeAlias = Literal["auto", "mini", "sdxl", "sd"]
ImageGuidanceName: TypeAlias = Literal["auto", "mini", "zero123"]
MapName: TypeAlias = Literal["depth", "normal"]  # of an input image
Origin: TypeAlias = Literal["keep", "bottom", "center"]  # of an exported mesh
Precision: TypeAlias = Literal["auto", "float32", "float16", "bfloat16"]
Quality: TypeAlias = Literal["fast", "draft", "standard", "high"]  # fast: of `texture` alone
Space: TypeAlias = Literal["pixels", "latents"]  # what a two-dimensional experiment optimises
Texture: TypeAlias = Literal["field", "image"]  # what stores the colours during the optimisation
Unit: TypeAlias = Literal["m", "cm", "mm", "in", "ft"]  # of length
UvChoice: TypeAlias = Literal["auto", "own", "new"]  # the file's own texture coordinates or new ones

AXES = ("+x", "-x", "+y", "-y", "+z", "-z")  # of a mesh file
