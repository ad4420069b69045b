"""The pipelines of the literature: presets of stages that follow each other in one run.

A pipeline of a command is the file `configs/pipeline-COMMAND-NAME.yaml`, whose first line describes it.
`pipeline-COMMAND-NAME-mini.yaml` lies over it for the bundled priors: the same stages, at sizes for a CPU.
"""

from dataclasses import dataclass
from pathlib import Path

from pgc3d.config import PRESETS, load_config
from pgc3d.errors import ConfigError
from pgc3d.layers import nearest

ONE_STAGE = "dmtet"  # the presets of the guidance alone
MINI = "-mini"


@dataclass(frozen=True)
class Pipeline:
    """A preset of several stages."""

    name: str
    summary: str  # one line
    files: tuple[Path, ...]  # none of `ONE_STAGE`
    mini: tuple[Path, ...]  # over `files` for the bundled priors


def pipelines(command: str) -> tuple[Pipeline, ...]:
    """The pipelines of a command, as "text" or "image"; none of a command for meshes."""
    prefix = f"pipeline-{command}-"
    files = sorted(path for path in PRESETS.glob(f"{prefix}*.yaml") if not path.stem.endswith(MINI))
    found = [
        Pipeline(
            name=path.stem.removeprefix(prefix),
            summary=_first_comment(path),
            files=(path,),
            mini=(path.with_stem(path.stem + MINI),),
        )
        for path in files
    ]
    one = Pipeline(ONE_STAGE, "A DMTet from a ball, in one stage; the default.", (), ())
    return (one, *found) if found else ()


def find_pipeline(command: str, name: str) -> Pipeline:
    """A pipeline by its name.

    Raises:
        ConfigError: the command has no such pipeline.
    """
    known = {pipeline.name: pipeline for pipeline in pipelines(command)}
    if not known:
        raise ConfigError(f"--pipeline must go with text or image, got {name!r} with {command}; remove it")
    if name not in known:
        raise ConfigError(f"--pipeline must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return known[name]


def takes_prompt(command: str, name: str | None) -> bool:
    """Whether a pipeline's stages use a prompt; None is that of the guidance's own presets, as `ONE_STAGE`.

    Raises:
        ConfigError: the command has no such pipeline.
    """
    files = find_pipeline(command, name).files if name is not None else ()
    return bool(files) and load_config(files).requires().prompt


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()
