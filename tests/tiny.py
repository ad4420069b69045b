"""Tiny random checkpoints with diffusers' and transformers' own classes; 64 px, a few MB."""

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.prompts import view_prompts
from pgc3d.types import TextEmbedding
from pgc3d.view_prompts import ViewPromptConfig

ROOT = Path(__file__).resolve().parent.parent


def _script(name: str) -> ModuleType:
    """A script as a module; scripts of one folder import each other by name."""
    if (scripts := str(ROOT / "scripts")) not in sys.path:
        sys.path.append(scripts)
    return importlib.import_module(name)


def write_tiny_sdxl(folder: Path, *, seed: int = 0) -> Path:
    """An SDXL-layout checkpoint; 1.2 M parameters."""
    _script("make_random_sdxl").write_random_sdxl(folder, full_size=False, seed=seed)
    return folder


def write_tiny_sd(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """An SD-layout checkpoint: one text encoder, no pooled embedding."""
    _script("make_random_sd").write_random_sd(folder, full_size=False, seed=seed)
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type=prediction_type)
    return folder


def write_tiny_controlnet(folder: Path, model: Path, *, seed: int = 0) -> Path:
    """A ControlNet for a tiny checkpoint; unlike a new one of the library it adds something."""
    write = _script("make_random_controlnet").write_random_controlnet
    return write(folder, model, full_size=False, seed=seed)


def write_tiny_adapter(folder: Path, model: Path, *, plus: bool = False, seed: int = 0) -> Path:
    """The file of an IP-Adapter for a tiny checkpoint, with its image encoder, in the authors' layout."""
    write = _script("make_random_ip_adapter").write_random_adapter
    return write(folder, model, full_size=False, plus=plus, seed=seed)


def write_tiny_zero123(folder: Path, *, pose: str | None = "radius", seed: int = 0) -> Path:
    """A Zero123-layout checkpoint; `pose` goes into its zero123.json, None leaves that out."""
    _script("make_random_zero123").write_random_zero123(folder, full_size=False, seed=seed)
    if pose is None:
        (folder / "zero123.json").unlink()
    else:
        edit_json(folder / "zero123.json", pose=pose)
    return folder


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@cache
def _loaded(
    folder: Path, prompt: str
) -> tuple[LatentDiffusion, TextEmbedding, TextEmbedding, ViewPromptConfig]:
    source = resolve_model(folder)
    config = source.view_prompts or ViewPromptConfig()
    positive, negative = encode_prompts(source, view_prompts(prompt, config)), encode_prompts(source, [""])
    return load_latent_diffusion(source), positive, negative, config


def tiny_score_distillation(folder: Path, *, prompt: str = "a red chair", **options) -> ScoreDistillation:
    """The guidance over a tiny checkpoint, as the composition root builds it; loads each folder once."""
    model, positive, negative, config = _loaded(folder, prompt)
    return ScoreDistillation(
        model=model,
        positive=positive,
        negative=negative,
        view_prompts_config=config,
        **options,
    )
