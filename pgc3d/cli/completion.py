"""Values that a shell completes, beside the options and choices that typer completes; cheap to import."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pgc3d.run_files import MANIFEST

RUNS = "runs"


def complete_model(incomplete: str) -> list[str]:
    """The aliases of models, and the bundled one."""
    from pgc3d.diffusion.aliases import BUNDLED, MODEL_ALIASES

    return [name for name in (BUNDLED, *MODEL_ALIASES) if name.startswith(incomplete)]


def complete_alias(incomplete: str) -> list[str]:
    """The aliases of models, ControlNets and VAEs."""
    from pgc3d.diffusion.aliases import ALIASES

    return [name for name in ALIASES if name.startswith(incomplete)]


def complete_pipeline(ctx: Any, incomplete: str) -> list[str]:
    """The pipelines of the command, as `pipelines.pipelines` names them."""
    prefix = f"pipeline-{ctx.info_name}-"
    files = sorted(Path(__file__).parents[1].joinpath("configs").glob(f"{prefix}*.yaml"))
    found = [path.stem.removeprefix(prefix) for path in files if not path.stem.endswith("-mini")]
    return [name for name in (["dmtet", *found] if found else []) if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """The folders of runs that begin with a text, or lie in such a folder; none lets the shell list files."""
    folders = [*_folders(incomplete), *([] if incomplete else _folders(f"{RUNS}/"))]
    inner = [child for folder in folders for child in _folders(f"{folder}/")]
    return list(dict.fromkeys(folder for folder in [*folders, *inner] if Path(folder, MANIFEST).is_file()))


def _folders(start: str) -> Iterable[str]:
    """The folders whose paths begin with a text, written as it is."""
    parent, slash, name = start.rpartition("/")
    place = Path(f"{parent}{slash}" or ".")
    try:
        found = sorted(entry.name for entry in place.iterdir() if entry.is_dir())
    except OSError:
        return []
    return [f"{parent}{slash}{entry}" for entry in found if entry.startswith(name)]
