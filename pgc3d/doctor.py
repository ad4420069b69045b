"""Checks of this machine: what pgc3d needs and what it can use, each with the command that mends it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from pgc3d.diffusion.hub import cache_folder, offline, set_environment
from pgc3d.errors import Pgc3dError
from pgc3d.mini import clip_model, control_model, image_model, text_model
from pgc3d.rendering.selftest import compare_rasterizers

State = Literal["ok", "missing", "broken"]  # `missing`: only an option needs it; `broken`: runs need it
FREE_DISK, FREE_MEMORY = 5e9, 4e9  # bytes below which a run may fail
PYTHON = ((3, 11), (3, 13))  # from, and below
TIMEOUT = 5.0  # seconds for the hub
OPTIONAL = {  # importable name: what it is for, and the command that installs it
    "rembg": ("images without alpha", "pip install 'pgc3d[matting]'"),
    "nvdiffrast": ("--rasterizer nvdiffrast", "pip install 'pgc3d[cuda]'"),
    "imageio_ffmpeg": ("turntable videos", "pip install imageio-ffmpeg"),
    "peft": ("the guidance vsd", "pip install peft"),
    "ray": ("batch --ray", "pip install 'pgc3d[cluster]'"),
    "tensorboard": ("--tensorboard", "pip install 'pgc3d[tensorboard]'"),
}


@dataclass(frozen=True)
class Finding:
    """One check."""

    name: str
    state: State
    found: str
    remedy: str = ""  # a command or what else to do; empty where nothing is wrong


def examine() -> Iterator[Finding]:
    """All checks in order; none of them raises, and no secret is part of a finding."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _torch, _memory, _rasterizers, _bundled, _caches, _disk, _hub, _libraries,
    )  # fmt: skip
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.removeprefix("_")
            yield Finding(name, "broken", f"the check failed: {type(error).__name__}: {error}")


def _python() -> Iterator[Finding]:
    own = sys.version_info[:2]
    state: State = "ok" if PYTHON[0] <= own < PYTHON[1] else "broken"
    remedy = "" if state == "ok" else "install Python 3.11 or 3.12"
    yield Finding("python", state, f"{platform.python_version()} on {platform.platform()}", remedy)


def _torch() -> Iterator[Finding]:
    built, driver = torch.version.cuda, _driver()
    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        yield Finding("torch", "ok", f"{version}, CUDA {built}, driver {driver or 'unknown'}: {names}")
    elif driver is None:
        yield Finding("torch", "ok", f"{version}, no NVIDIA driver: runs use the CPU and the bundled models")
    elif built is None:
        yield Finding(
            "torch", "broken", f"{version} has no CUDA, but there is a driver {driver}",
            "install a CUDA build of torch, see pytorch.org/get-started/locally",
        )  # fmt: skip
    else:
        yield Finding(
            "torch", "broken", f"{version} for CUDA {built} finds no device, driver {driver}",
            "update the NVIDIA driver, or install a build of torch for an older CUDA",
        )  # fmt: skip


def _driver() -> str | None:
    """Version of the NVIDIA driver, None without one."""
    path = Path("/proc/driver/nvidia/version")
    if path.is_file():
        words = path.read_text(encoding="utf-8", errors="replace").split()
        return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
    return "unknown" if shutil.which("nvidia-smi") else None


def _memory() -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    low = available < FREE_MEMORY
    remedy = "close other programs" if low else ""
    yield Finding("memory", "broken" if low else "ok", f"{available / 1e9:.1f} GB available", remedy)
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        low = free < FREE_MEMORY
        yield Finding(
            f"memory of GPU {index}", "broken" if low else "ok",
            f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free",
            "end the programs that nvidia-smi lists" if low else "",
        )  # fmt: skip


def _rasterizers() -> Iterator[Finding]:
    try:
        difference = compare_rasterizers(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    except Pgc3dError as error:
        yield Finding("rasteriser", "broken", str(error), "pip install --force-reinstall pgc3d")
        return
    wrong = difference > 0.0
    yield Finding(
        "rasteriser", "broken" if wrong else "ok",
        f"{100 * difference:.2f} % of the pixels of a test image differ from the geometry",
        "please report it, with this output" if wrong else "",
    )  # fmt: skip


def _bundled() -> Iterator[Finding]:
    try:
        folders = (text_model(), image_model()[0], clip_model(), control_model())
    except Pgc3dError as error:
        yield Finding("bundled models", "broken", str(error), "pip install --force-reinstall pgc3d")
        return
    yield Finding("bundled models", "ok", ", ".join(folder.name for folder in folders))


def _caches() -> Iterator[Finding]:
    set_environment()
    from huggingface_hub import constants

    folders = {
        "cache of models": Path(constants.HF_HUB_CACHE),
        "cache of pgc3d": cache_folder(),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, folder in folders.items():
        writable = _is_writable(folder)
        remedy = "" if writable else f"make it writable, or set {_variable(name)} to another folder"
        yield Finding(name, "ok" if writable else "broken", str(folder), remedy)


def _variable(name: str) -> str:
    return {"cache of models": "HF_HOME", "cache of pgc3d": "XDG_CACHE_HOME"}.get(name, "TMPDIR")


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder can be made; nothing stays."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing.is_dir()
    except OSError:
        return False


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    low = free < FREE_DISK
    remedy = "free some, or use --out on another disk" if low else ""
    yield Finding("disk", "broken" if low else "ok", f"{free / 1e9:.1f} GB free here", remedy)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import get_token

    if offline():
        yield Finding("hub", "ok", "HF_HUB_OFFLINE is set: models are taken from this disk alone")
    else:
        address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        reached = _reaches(address)
        yield Finding(
            "hub", "ok" if reached else "missing",
            f"{address} answers" if reached else f"{address} does not answer: models on this disk still work",
            "" if reached else "check the network and its proxy",
        )  # fmt: skip
    token = "present" if get_token() else "none: only gated models need one, `hf auth login`"
    yield Finding("token of the hub", "ok", token)


def _reaches(address: str) -> bool:
    import urllib.request

    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return True
    except OSError as error:
        return getattr(error, "code", None) is not None  # an answer, if not a kind one


def _libraries() -> Iterator[Finding]:
    if torch.cuda.is_available():
        here = importlib.util.find_spec("triton") is not None
        yield Finding(
            "triton", "ok" if here else "broken", _version("triton"), "" if here else "pip install triton"
        )
    for name, (purpose, remedy) in OPTIONAL.items():
        if importlib.util.find_spec(name) is not None:
            yield Finding(name, "ok", _version(name))
        else:
            yield Finding(name, "missing", f"not installed; for {purpose}", remedy)


def _version(name: str) -> str:
    names = importlib.metadata.packages_distributions().get(name, [])
    return f"{names[0]} {importlib.metadata.version(names[0])}" if names else "not installed"
