"""The words that settings and options choose between, each list once; light to import."""

from typing import Literal, TypeAlias

Backend: TypeAlias = Literal["auto", "nvdiffrast", "triton", "cpu"]  # rasterisers
Baseline: TypeAlias = Literal["hull", "billboard"]  # that an image's result is compared with
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
Format: TypeAlias = Literal["glb", "obj", "ply", "stl"]  # of mesh files that are written
Frame: TypeAlias = Literal["own", "shared"]  # how a result and the truth are brought together
GuidanceName: TypeAlias = Literal["auto", "mini", "sdxl", "sd", "zero123"]
TextGuidanceName: TypeAlias = Literal["auto", "mini", "sdxl", "sd"]
ImageGuidanceName: TypeAlias = Literal["auto", "mini", "zero123"]
MapName: TypeAlias = Literal["depth", "normal"]  # of an input image
Precision: TypeAlias = Literal["auto", "float32", "float16", "bfloat16"]
Quality: TypeAlias = Literal["draft", "standard", "high"]
Space: TypeAlias = Literal["pixels", "latents"]  # that a two-dimensional experiment optimises
Texture: TypeAlias = Literal["field", "image"]  # that holds the colours while they are learnt
UvChoice: TypeAlias = Literal["auto", "own", "new"]  # whose texture coordinates a textured mesh has
