"""The entries of a batch's list as jobs: each by the command line that it stands for."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pgc3d.batch.job import Job, digest_of
from pgc3d.batch.lists import Row, check_names, names_of, parse_seeds, read_rows
from pgc3d.cli.options import MAKERS, RunOptions, runs_of
from pgc3d.config import STAGE_NUMBERS
from pgc3d.errors import BackendUnavailableError, InputError, Pgc3dError, WeightsNotFoundError
from pgc3d.layers import nearest
from pgc3d.ranges import shown

OWN = ("command", "name", "seeds")  # keys that are no options
NOT_HERE = ("out", "json", "quiet")  # options that the batch has
INPUTS = {"input_image": "image"}  # keys of arguments with another name
FILE_OR_NAME = ("model", "lora", "style-adapter", "background")  # a file, or the name of something else
ADDED = ("set", "config")  # options of which an entry's own come behind those of the whole list
SETTINGS = {  # what an option sets that `set` would override
    **{
        key: f"run.{key.replace('-', '_')}" for key in ("seed", "device", "steps", "low-memory", "rasterizer")
    },
    "resolution": "run.resolution",
    "texture-size": "export.texture_size",
    "faces": "export.faces",
    "tensorboard": "logging.tensorboard",
}
SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command."""

    flag: str  # as "--steps"; "" for an argument
    is_path: bool
    is_list: bool
    is_switch: bool


@dataclass(frozen=True)
class Defaults:
    """Options of all entries of a list; an entry's own value of an option takes the place of it."""

    values: Mapping[str, Any] = field(default_factory=dict)  # by the keys of a list, without None

    @classmethod
    def of(cls, guidance: str | None, options: RunOptions) -> "Defaults":
        """The options that the command line of a batch has."""
        given = {item.name: getattr(options, item.name) for item in fields(options)}
        named = {name.rstrip("_").replace("_", "-"): value for name, value in given.items()}
        return cls(
            {key: value for key, value in {"guidance": guidance, **named}.items() if value is not None}
        )

    def beside(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Those that hold for an entry with its own values, before which those of `set` and `config` come."""
        keys = {str(key).replace("_", "-") for key in own}
        left = {key: value for key, value in self.values.items() if key in ADDED or key not in keys}
        if "set" in left:
            chosen = {setting for key, setting in SETTINGS.items() if key in keys}
            kept = [text for text in left.pop("set") if _setting(text) not in chosen]
            left |= {"set": kept} if kept else {}
        return left


def _setting(override: str) -> str:
    """The name of a setting in KEY=VALUE."""
    name = override.partition("=")[0].strip()
    return f"run.{name}" if name in STAGE_NUMBERS else name


def read_jobs(
    path: Path,
    notify: Callable[[str], None],
    defaults: Defaults = Defaults(),
) -> list[Job]:
    """The jobs of a list; those that are not valid have an error.

    Args:
        path: of the list.
        notify: receives each line about automatic choices once.
        defaults: options of all entries; their paths are relative to the current folder.

    Raises:
        InputError: the list cannot be read.
    """
    rows, notes = read_rows(path), dict[str, None]()
    names = names_of(rows)
    jobs = []
    for row, name, error in zip(rows, names, check_names(names), strict=True):
        try:
            if row.error or error:
                raise InputError(row.error or error)
            jobs.append(_job(row, name, path.absolute().parent, notes.setdefault, defaults))
        except (Pgc3dError, OSError) as problem:
            kept = name if not error else f"{row.place.replace(' ', '-')}.invalid"
            jobs.append(
                Job(kept, digest_of(row.values, {}), error=f"{row.place}: {problem}", is_invalid=True)
            )
    for note in notes:
        notify(note)
    return jobs


def _job(row: Row, name: str, folder: Path, note: Callable[[str], Any], defaults: Defaults) -> Job:
    others = defaults.beside(row.values)
    values = {**others, "its own": dict(row.values)} if others else row.values
    command, *own = arguments_of(_command(row.values), row, folder)
    arguments = [command, *_arguments(others, command), *own]
    try:
        runs = runs_of(arguments, notify=note)
    except (WeightsNotFoundError, BackendUnavailableError) as error:  # of this machine, not of the list
        return Job(name, digest_of(values, {}), error=str(error))
    except Pgc3dError:
        raise
    except Exception as error:
        if not hasattr(error, "format_message"):  # of typer's errors, wherever it keeps click's
            raise
        raise InputError(error.format_message()) from error
    task, config = runs[0]
    for kind, file in task.files.items():
        if not file.is_file():
            raise InputError(f"{kind} must be a file, got none at {file}")
    if "seed" in row.values and isinstance(row.values.get("seeds"), list):
        raise InputError("seeds must not be a list beside seed, got both; remove one of them")
    from pgc3d.build.inputs import require_fitting
    from pgc3d.prompt_weights import require_prompt

    require_fitting(config, task)
    if config.requires().prompt:
        require_prompt(task.prompt)
    settings = [text.removeprefix("--config=") for text in arguments if text.startswith("--config=")]
    return Job(
        name,
        digest_of(values, task.files | {text: Path(text) for text in settings}),
        task=task,
        config=config,
        seeds=parse_seeds(row.values.get("seeds"), config.run.seed),
    )


def _arguments(defaults: Mapping[str, Any], command: str) -> list[str]:
    """Defaults as on the command line."""
    found: list[str] = []
    for key, value in defaults.items():
        flag = parameters_of(command)[key].flag
        texts = value if isinstance(value, list) else [value]
        found += [flag] if value is True else [f"{flag}={text}" for text in texts]
    return found


def _command(values: Mapping[str, Any]) -> str:
    """The command of an entry: its own, or by its inputs."""
    if "command" in values:
        if values["command"] not in MAKERS:
            raise InputError(f"command must be one of {', '.join(MAKERS)}, got {shown(values['command'])}")
        return str(values["command"])
    inputs = {"mesh": "texture", "image": "image", "prompt": "text"}
    found = next((command for key, command in inputs.items() if key in values), None)
    if found is None:
        raise InputError(f"it must have one of {', '.join(inputs)}, got {', '.join(values) or 'nothing'}")
    return found


def arguments_of(command: str, row: Row, folder: Path) -> list[str]:
    """The command line, behind `pgc3d`, that an entry stands for.

    Args:
        command: text, image or texture.
        row: the entry.
        folder: that paths are relative to.

    Raises:
        InputError: a key is unknown, an input is missing, or a value has another form.
    """
    parameters = parameters_of(command)
    options: list[str] = []
    inputs: dict[str, str] = {}
    for given, value in row.values.items():
        key = str(given).replace("_", "-")
        if key in OWN:
            continue
        if key not in parameters:
            known = [*parameters, *OWN]
            raise InputError(
                f"a key must be an option of {command} or one of {', '.join(OWN)}, got {given!r}"
                f"{nearest(key, known)}"
            )
        parameter = parameters[key]
        if parameter.is_switch:
            options += [parameter.flag] if _is_on(key, value) else []
            continue
        texts = [_located(key, text, parameter, folder) for text in _texts(key, value, row, parameter)]
        if parameter.flag:
            options += [f"{parameter.flag}={text}" for text in texts]
        else:
            inputs[key] = texts[0]
    needed = [key for key, parameter in parameters.items() if not parameter.flag]
    for key in needed:
        if key not in inputs:
            raise InputError(f"it must have {' and '.join(needed)} for {command}, got no {key}; add it")
    return [command, *options, "--", *(inputs[key] for key in needed)]


@cache
def parameters_of(command: str) -> dict[str, Parameter]:
    """The arguments and options of a command by their keys in a list, arguments in their order.

    Args:
        command: text, image or texture.
    """
    from pgc3d.cli.app import app

    function = next(
        item.callback
        for item in app.registered_commands
        if item.callback and item.callback.__name__ == command
    )
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = _annotated(parameter.annotation)
        # inside Annotated the first flag is where a default would be
        named = [getattr(info, "default", None), *(getattr(info, "param_decls", None) or ())]
        flags = [flag for flag in named if isinstance(flag, str) and flag.startswith("--")]
        flag = flags[0] if flags else f"--{name.replace('_', '-')}"
        is_option = type(info).__name__ == "OptionInfo"
        key = flag.removeprefix("--") if is_option else INPUTS.get(name, name)
        if key not in NOT_HERE:
            parts = _parts(kind)
            found[key] = Parameter(
                flag if is_option else "", Path in parts, list in parts, bool in parts and bool(flags)
            )
    return found


def _annotated(annotation: Any) -> tuple[Any, Any]:
    """The type and typer's object of a parameter's annotation."""
    if get_origin(annotation) is not Annotated:
        return annotation, None
    kind, info, *_ = get_args(annotation)
    return kind, info


def _parts(kind: Any) -> set[Any]:
    """The types that occur in a type."""
    inner = get_args(kind)
    return {get_origin(kind) or kind}.union(*(_parts(part) for part in inner)) if inner else {kind}


def _is_on(key: str, value: Any) -> bool:
    found = value if isinstance(value, bool) else SWITCH.get(str(value).strip().lower())
    if found is None:
        raise InputError(f"{key} must be true or false, got {shown(value)}")
    return found


def _texts(key: str, value: Any, row: Row, parameter: Parameter) -> list[str]:
    """The values of a key as on the command line."""
    if row.is_text and parameter.is_list:
        value = [part.strip() for part in value.split(";")]
    if isinstance(value, list) and not parameter.is_list:
        raise InputError(f"{key} must be one value, got {shown(value)}")
    values = value if isinstance(value, list) else [value]
    for entry in values:
        if not isinstance(entry, str | int | float):
            raise InputError(f"{key} must be text or a number, got {shown(entry)}")
    return [str(entry).lower() if isinstance(entry, bool) else str(entry) for entry in values]


def _located(key: str, text: str, parameter: Parameter, folder: Path) -> str:
    """A value whose path is relative to the list, made absolute; "" stays."""
    if not text:
        return text
    if key == "prompt" and text.startswith("@"):
        return f"@{folder / text[1:]}"
    if parameter.is_path or (key in FILE_OR_NAME and (folder / text.partition(":")[0]).exists()):
        return str(folder / text)
    return text
