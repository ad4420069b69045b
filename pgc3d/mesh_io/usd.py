"""USDZ: written for viewers as Quick Look, and read, with the package usd-core.

One mesh, y up, in metres, with materials of the kind UsdPreviewSurface
(https://openusd.org/release/spec_usdpreviewsurface.html). The archive is that of the USDZ specification:
nothing is compressed, and every file starts on a multiple of 64.
"""

import tempfile
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.images import encode_png
from pgc3d.mesh_io.asset import AssetMaterial, MeshAsset
from pgc3d.mesh_io.gltf_material import decode_image
from pgc3d.mesh_io.packages import require_package
from pgc3d.mesh_io.polygons import triangulate
from pgc3d.mesh_io.side_images import refusal
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh
from pgc3d.mesh_io.surface import in_single
from pgc3d.rendering.shading import linear_to_srgb

WRAPS = {"repeat": "repeat", "clamp": "clamp", "mirror": "mirror"}
ROOT = "/Asset"


def encode_usdz(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    """A USDZ archive with the mesh and its textures.

    Raises:
        InputError: usd-core is not installed.
        ValueError: the asset lacks texture coordinates or a base colour.
    """
    require_package("pxr", "usd", "writing USDZ")
    from pxr import UsdUtils

    surfaces = asset.surfaces
    if (
        asset.uv is None
        or asset.uv_faces is None
        or not surfaces
        or any(item.image is None for item in surfaces)
    ):
        raise ValueError("a USDZ must have texture coordinates and images of the base colour")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, surface in enumerate(surfaces):
            for key, image in _images(surface).items():
                (folder / f"{key}_{number}.png").write_bytes(encode_png(image))
        _write_stage(folder / "asset.usdc", asset)
        archive = folder / "asset.usdz"
        if not UsdUtils.CreateNewUsdzPackage(str(folder / "asset.usdc"), str(archive)):
            raise ValueError(f"usd-core must be able to pack {path}, but it failed")
        return {path: archive.read_bytes()}


def _images(surface: AssetMaterial) -> dict[str, UInt8[Tensor, "H W 3"]]:
    """The images of a surface by the stems of their files."""
    named = {
        "base_color": surface.image,
        "metallic_roughness": surface.metallic_roughness,
        "normal": surface.normal_map,
    }
    return {name: image for name, image in named.items() if image is not None}


def _write_stage(path: Path, asset: MeshAsset) -> None:
    from pxr import Usd, UsdGeom, UsdShade, Vt

    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, ROOT)
    stage.SetDefaultPrim(root.GetPrim())
    stage.GetRootLayer().customLayerData = dict(asset.metadata)
    mesh = UsdGeom.Mesh.Define(stage, f"{ROOT}/mesh")
    _write_geometry(mesh, asset)
    materials = [_write_material(stage, number, surface) for number, surface in enumerate(asset.surfaces)]
    binding = UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim())
    if len(materials) == 1:
        binding.Bind(materials[0])
    else:
        binding.SetMaterialBindSubsetsFamilyType(UsdGeom.Tokens.partition)
        for number, material in enumerate(materials):
            rows = (asset.face_surface == number).nonzero()[:, 0]
            part = binding.CreateMaterialBindSubset(f"part_{number}", Vt.IntArray.FromNumpy(_flat(rows)))
            UsdShade.MaterialBindingAPI.Apply(part.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()


def _write_geometry(mesh: Any, asset: MeshAsset) -> None:
    from pxr import Gf, Sdf, UsdGeom, Vt

    points = np.ascontiguousarray(asset.vertices.numpy(), dtype=np.float32)
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(asset.faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(_flat(asset.faces)))
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)  # else viewers would smooth the surface
    mesh.CreateDoubleSidedAttr(True)  # noqa: FBT003 - of the library
    low, high = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    mesh.CreateExtentAttr([Gf.Vec3f(*low), Gf.Vec3f(*high)])
    variables, corner = UsdGeom.PrimvarsAPI(mesh.GetPrim()), UsdGeom.Tokens.faceVarying
    normals = variables.CreatePrimvar("normals", Sdf.ValueTypeNames.Normal3fArray, corner)
    normals.Set(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(asset.normals.numpy(), dtype=np.float32)))
    normals.SetIndices(Vt.IntArray.FromNumpy(_flat(asset.normals_of_corners)))
    if asset.uv is not None and asset.uv_faces is not None:
        uv = variables.CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, corner)
        uv.Set(Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(asset.uv.numpy(), dtype=np.float32)))
        uv.SetIndices(Vt.IntArray.FromNumpy(_flat(asset.uv_faces)))


def _flat(faces: Tensor) -> NDArray[np.int32]:
    return np.ascontiguousarray(faces.reshape(-1).numpy(), dtype=np.int32)


def _write_material(stage: Any, number: int, asset: AssetMaterial) -> Any:
    from pxr import Gf, Sdf, UsdShade

    images, place = _images(asset), f"{ROOT}/surface_{number}"
    material = UsdShade.Material.Define(stage, place)
    material.GetPrim().SetDisplayName(asset.name)
    surface = UsdShade.Shader.Define(stage, f"{place}/preview")
    surface.CreateIdAttr("UsdPreviewSurface")
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    reader = UsdShade.Shader.Define(stage, f"{place}/st")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
    types = Sdf.ValueTypeNames

    def texture(name: str, space: str) -> Any:
        shader = UsdShade.Shader.Define(stage, f"{place}/{name}")
        shader.CreateIdAttr("UsdUVTexture")
        shader.CreateInput("file", types.Asset).Set(f"./{name}_{number}.png")
        shader.CreateInput("sourceColorSpace", types.Token).Set(space)
        for key, wrap in zip(("wrapS", "wrapT"), asset.wrap, strict=True):
            shader.CreateInput(key, types.Token).Set(WRAPS[wrap])
        shader.CreateInput("st", types.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        return shader

    def connect(key: str, kind: Any, shader: Any, output: str) -> None:
        surface.CreateInput(key, kind).ConnectToSource(shader.ConnectableAPI(), output)

    connect("diffuseColor", types.Color3f, texture("base_color", "sRGB"), "rgb")
    if "metallic_roughness" in images:
        both = texture("metallic_roughness", "raw")
        connect("roughness", types.Float, both, "g")
        connect("metallic", types.Float, both, "b")
    else:
        surface.CreateInput("roughness", types.Float).Set(1.0)
        surface.CreateInput("metallic", types.Float).Set(0.0)
    if "normal" in images:
        bump = texture("normal", "raw")
        bump.CreateInput("scale", types.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
        bump.CreateInput("bias", types.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
        connect("normal", types.Normal3f, bump, "rgb")
    return material


def read_usdz(data: bytes, path: Path) -> SourceMesh:  # noqa: ARG001 - the library opens the path
    """The meshes of a USDZ with their transforms, base colours and first texture coordinates.

    Coordinates become those of glTF: y up and metres.

    Raises:
        InputError: it is damaged, or usd-core is not installed.
    """
    require_package("pxr", "usd", "reading USDZ")
    from pxr import Usd, UsdGeom

    try:
        stage = Usd.Stage.Open(str(path.absolute()))
        frame = UsdGeom.XformCache()
        prims = stage.Traverse(Usd.TraverseInstanceProxies())
        meshes = [UsdGeom.Mesh(prim) for prim in prims if prim.IsA(UsdGeom.Mesh)]
        upright = _upright(stage)
        parts = [_Part.of(mesh, frame.GetLocalToWorldTransform(mesh.GetPrim()), upright) for mesh in meshes]
    except Exception as error:  # the library's own class
        raise InputError(
            f"the mesh file must be readable, but {path} is damaged ({type(error).__name__}); export it again"
        ) from error
    parts = [part for part in parts if len(part.faces)]
    if not parts:
        raise InputError(f"the mesh must have faces, got none in {path}; export it again")
    return _joined(parts, path)


def _upright(stage: Any) -> NDArray[np.float64]:
    """The matrix from the axes and the unit of a stage to y up and metres, for column vectors."""
    from pxr import UsdGeom

    scale = UsdGeom.GetStageMetersPerUnit(stage)
    turned = UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z
    axes = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]) if turned else np.eye(3)
    upright: NDArray[np.float64] = axes * float(scale)
    return upright


class _Part:
    """One mesh of a stage: triangles, and per corner a normal and a texture coordinate where it has some."""

    def __init__(self, vertices: NDArray[Any], faces: NDArray[Any]) -> None:
        self.vertices, self.faces = vertices, faces
        self.normals: NDArray[Any] | None = None  # [F, 3, 3]
        self.uv: NDArray[Any] | None = None  # [F, 3, 2]
        self.materials: list[SourceMaterial] = []
        self.face_material = np.full(len(faces), -1)  # in `materials`

    @classmethod
    def of(cls, mesh: Any, transform: Any, upright: NDArray[np.float64]) -> "_Part":
        from pxr import UsdGeom

        matrix = np.array(transform, dtype=np.float64).T  # USD has row vectors
        linear, shift = upright @ matrix[:3, :3], upright @ matrix[:3, 3]
        points = np.array(mesh.GetPointsAttr().Get() or [], dtype=np.float64).reshape(-1, 3)
        counts = np.array(mesh.GetFaceVertexCountsAttr().Get() or [], dtype=np.int64)
        index = np.array(mesh.GetFaceVertexIndicesAttr().Get() or [], dtype=np.int64)
        corners, polygon = triangulate(points, index, counts)
        left = mesh.GetOrientationAttr().Get() == UsdGeom.Tokens.leftHanded
        if left != (np.linalg.det(linear) < 0):
            corners = corners[:, ::-1].copy()
        part = cls(points @ linear.T + shift, index[corners])
        variables = UsdGeom.PrimvarsAPI(mesh.GetPrim())
        normals = _values(variables.GetPrimvar("normals"), index, corners, 3)
        if normals is not None:
            turned = normals @ np.linalg.pinv(linear)
            part.normals = turned / np.maximum(np.linalg.norm(turned, axis=2, keepdims=True), 1e-30)
        names = ["st", *(item.GetPrimvarName() for item in variables.GetPrimvars())]
        found = (variables.GetPrimvar(name) for name in names)
        kinds = ("texCoord2f[]", "float2[]")
        first = next((item for item in found if item and str(item.GetTypeName()) in kinds), None)
        part.uv = None if first is None else _values(first, index, corners, 2)
        part._read_materials(mesh, polygon)
        return part

    def _read_materials(self, mesh: Any, polygon: NDArray[np.int64]) -> None:
        """The material of the mesh, and those of groups of its polygons.

        Args:
            mesh: of the stage.
            polygon: of each triangle.
        """
        from pxr import UsdShade

        groups = UsdShade.MaterialBindingAPI(mesh.GetPrim()).GetMaterialBindSubsets()
        for prim, rows in [
            (mesh.GetPrim(), None),
            *((part.GetPrim(), part.GetIndicesAttr().Get()) for part in groups),
        ]:
            material = _read_material(prim)
            if material is not None:
                inside = np.ones(len(polygon), bool) if rows is None else np.isin(polygon, np.array(rows))
                self.face_material[inside] = len(self.materials)
                self.materials.append(material)


def _values(
    variable: Any, index: NDArray[np.int64], corners: NDArray[np.int64], width: int
) -> NDArray[Any] | None:
    """The values [F, 3, width] of a primvar at the corners of triangles; None where it has none."""
    if not variable or not variable.HasValue():
        return None
    flat = np.array(variable.ComputeFlattened(), dtype=np.float64).reshape(-1, width)
    return {"faceVarying": flat, "vertex": flat[index], "varying": flat[index]}[
        str(variable.GetInterpolation())
    ][corners]


def _read_material(prim: Any) -> SourceMaterial | None:
    """The base colour of the material that is bound to a mesh or a group of its faces."""
    from pxr import UsdShade

    material, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()
    source = material.ComputeSurfaceSource()[0] if material else None
    if not source:
        return None
    color = torch.ones(4)
    base = source.GetInput("diffuseColor")
    if not base:
        return SourceMaterial(name=material.GetPrim().GetName())
    origin = base.GetConnectedSource()
    if origin is None:
        color[:3] = linear_to_srgb(torch.tensor(tuple(base.Get() or (1.0, 1.0, 1.0))))
        return SourceMaterial(name=material.GetPrim().GetName(), color=color)
    texture = UsdShade.Shader(origin[0].GetPrim())
    wraps = [texture.GetInput(key) for key in ("wrapS", "wrapT")]
    modes = [str(wrap.Get()) if wrap else "repeat" for wrap in wraps]
    return SourceMaterial(
        name=material.GetPrim().GetName(),
        load_image=_loader(texture.GetInput("file").Get()),
        wrap=(_mode(modes[0]), _mode(modes[1])),
        load_surface=_image_of(source, "roughness"),
        load_normal=_image_of(source, "normal"),
    )


def _mode(name: str) -> str:
    return name if name in WRAPS else "repeat"


def _image_of(source: Any, key: str) -> Callable[[], Image.Image] | None:
    from pxr import UsdShade

    entry = source.GetInput(key)
    origin = entry.GetConnectedSource() if entry else None
    if origin is None:
        return None
    return _loader(UsdShade.Shader(origin[0].GetPrim()).GetInput("file").Get())


def _loader(asset: Any) -> Callable[[], Image.Image]:
    """A function that opens an image inside the archive, once."""
    archive, bracket, name = str(asset.resolvedPath).partition("[")
    if not bracket:
        return refusal(f"an image of a USDZ must be in the archive, got {asset.path}; export it again")
    return cache(partial(_open, Path(archive), name.removesuffix("]")))


def _open(archive: Path, name: str) -> Image.Image:
    with zipfile.ZipFile(archive) as content:
        return decode_image(content.read(name), f"{name} of {archive.name}")


def _joined(parts: list[_Part], path: Path) -> SourceMesh:
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = np.concatenate([start + part.faces for start, part in zip(starts[:-1], parts, strict=True)])
    vertices, notes = in_single(np.concatenate([part.vertices for part in parts]), faces, path)
    materials = [material for part in parts for material in part.materials]
    numbers, count = [], 0
    for part in parts:
        numbers.append(np.where(part.face_material < 0, -1, part.face_material + count))
        count += len(part.materials)
    uv, uv_faces = _corner_values([(part.uv, len(part.faces)) for part in parts], 2)
    normals, normal_faces = _corner_values([(part.normals, len(part.faces)) for part in parts], 3)
    return SourceMesh(
        vertices,
        torch.from_numpy(faces),
        normals=normals,
        normal_faces=normal_faces,
        uv=uv,
        uv_faces=uv_faces,
        face_material=torch.from_numpy(np.concatenate(numbers)) if materials else None,
        materials=tuple(materials),
        notes=tuple(notes),
        lost=("prims other than meshes, skins and animations",),
        face_part=torch.from_numpy(np.repeat(np.arange(len(parts)), [len(part.faces) for part in parts])),
    )


def _corner_values(
    values: list[tuple[NDArray[Any] | None, int]], width: int
) -> tuple[Float[Tensor, "N W"] | None, Tensor | None]:
    """Values of all corners, equal ones joined, and the corners' indices in them; -1 without a value."""
    if all(value is None for value, _ in values):
        return None, None
    whole = [np.zeros((faces, 3, width)) if value is None else value for value, faces in values]
    known = np.repeat([value is not None for value, _ in values], [faces for _, faces in values])
    flat = np.concatenate(whole).reshape(-1, width).astype(np.float32)
    unique, index = np.unique(flat, axis=0, return_inverse=True)
    corners = np.where(known[:, None], index.reshape(-1, 3), -1)
    return torch.from_numpy(unique), torch.from_numpy(corners)
