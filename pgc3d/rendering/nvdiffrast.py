"""The rasteriser for CUDA by nvdiffrast, whose antialiasing is not used.

Works with the package index's `diffrp-nvdiffrast` 0.3.3 (compiles itself at first use) and with an official
nvdiffrast 0.4 (compiled when installed).
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.errors import BackendUnavailableError
from pgc3d.types import Fragments

_INSTALL = "pip install 'pgc3d[cuda]'"


class NvdiffrastRasterizer:
    """nvdiffrast's CUDA rasteriser, flipped so that row 0 is on top.

    Positions are snapped to 1/16 pixel. A triangle with a vertex that is not finite in one view is drawn in
    no view.
    """

    def __init__(self, device: torch.device) -> None:
        """Create the native context; the first use on a machine may compile for half a minute.

        Raises:
            BackendUnavailableError: no CUDA, or nvdiffrast is missing or cannot be compiled.
        """
        self._ops = _import_ops()
        self._context = _create_context(self._ops, device)

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Fragments:
        """The nearest triangle of every pixel; resolution is (height, width)."""
        if faces.shape[0] == 0 or clip.shape[0] == 0:
            return Fragments(data=clip.new_zeros(clip.shape[0], *resolution, 4))
        finite = torch.isfinite(clip).all(dim=-1, keepdim=True)  # [B, V, 1]
        drawable = finite.all(dim=0)[faces.long(), 0].all(dim=-1, keepdim=True)  # [F, 1]
        clip = torch.where(finite, clip, clip.new_ones(()))
        # nvdiffrast puts row 0 at y = -1; the sign change turns the image and its gradient over.
        clip = torch.cat([clip[..., :1], -clip[..., 1:2], clip[..., 2:]], dim=-1).contiguous()
        triangles = torch.where(drawable, faces, 0).int().contiguous()
        data, _ = self._ops.rasterize(self._context, clip, triangles, resolution, grad_db=False)
        return Fragments(data=data)

    def interpolate(
        self, attributes: Float[Tensor, "A V C"], fragments: Fragments, faces: Int[Tensor, "F 3"]
    ) -> Float[Tensor, "B H W C"]:
        """Interpolate vertex attributes (A = 1 or B) at the pixels, 0 where nothing was hit."""
        if faces.shape[0] == 0 or attributes.shape[0] == 0:
            return fragments.data.new_zeros(*fragments.data.shape[:3], attributes.shape[2])
        triangles = faces.int().contiguous()
        output: Tensor
        output, _ = self._ops.interpolate(attributes.contiguous(), fragments.data.contiguous(), triangles)
        return output


def _import_ops() -> Any:
    try:
        import nvdiffrast.torch
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"the nvdiffrast rasterizer must have nvdiffrast, but it is missing ({_one_line(error)}); "
            f"{_INSTALL}"
        ) from error
    return nvdiffrast.torch


def _create_context(ops: Any, device: torch.device) -> Any:
    if device.type != "cuda" or not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"the nvdiffrast rasterizer must have a CUDA device, got {device} "
            f"(CUDA available: {torch.cuda.is_available()}); use --device cpu, or a CUDA build of torch"
        )
    try:
        with _extensions_stay_importable():
            return ops.RasterizeCudaContext(device=device)
    except Exception as error:  # a build can fail in any way: compiler, ninja, toolkit, driver
        raise BackendUnavailableError(
            f"nvdiffrast must compile at its first use, but failed ({_one_line(error)}); install a C++ "
            "compiler, ninja and the CUDA toolkit of torch's CUDA version (CUDA_HOME), or use --device cpu"
        ) from error


@contextmanager
def _extensions_stay_importable() -> Iterator[None]:
    """Leave extensions that torch compiles or loads in `sys.modules` for as long as the context is open.

    nvdiffrast 0.3 loads its plugin through torch and then imports it by name; torch >= 2.11 returns the
    module without registering it, so the import fails.
    """
    from torch.utils import cpp_extension

    names = ("load", "_import_module_from_library")  # the second serves plugins that were compiled earlier
    originals = {name: getattr(cpp_extension, name) for name in names if hasattr(cpp_extension, name)}
    for name, original in originals.items():
        setattr(cpp_extension, name, _registering(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(cpp_extension, name, original)


def _registering(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_and_register(*args: Any, **kwargs: Any) -> Any:
        module = load(*args, **kwargs)
        if isinstance(module, ModuleType):
            sys.modules.setdefault(module.__name__, module)
        return module

    return load_and_register


def _one_line(error: BaseException) -> str:
    """The first line of a message that may hold a whole compiler log."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
