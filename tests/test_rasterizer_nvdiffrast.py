import importlib
import sys
from types import ModuleType

import pytest
import torch

from pgc3d.errors import BackendUnavailableError
from pgc3d.rendering import build_rasterizer
from pgc3d.rendering import nvdiffrast as backend


def test_without_cuda_the_error_names_the_fix():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(BackendUnavailableError, match=r"pip install|--device cpu"):
        build_rasterizer("nvdiffrast", torch.device("cuda"))


def test_cpu_tensors_are_refused():
    with pytest.raises(BackendUnavailableError, match=r"pip install|--device cpu"):
        build_rasterizer("nvdiffrast", torch.device("cpu"))


def test_loaded_extension_can_be_imported_by_name_and_torch_is_restored(monkeypatch):
    from torch.utils import cpp_extension

    def load(name):
        return ModuleType(name)

    monkeypatch.setattr(cpp_extension, "load", load)
    monkeypatch.delitem(sys.modules, "made_up_plugin", raising=False)
    with backend._extensions_stay_importable():
        module = cpp_extension.load("made_up_plugin")
    assert importlib.import_module("made_up_plugin") is module
    assert cpp_extension.load is load
    del sys.modules["made_up_plugin"]


def test_a_failed_build_becomes_one_line(monkeypatch):
    class Operations:
        @staticmethod
        def RasterizeCudaContext(device):
            raise RuntimeError("Ninja is required to load C++ extensions\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BackendUnavailableError, match="Ninja is required") as caught:
        backend._create_context(Operations, torch.device("cuda"))
    assert "\n" not in str(caught.value)
    assert "ninja" in str(caught.value)
