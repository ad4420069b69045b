"""The reference pages, generated from the code: one for each command, and one for each group of settings.

A command's options come from the command tree. A setting's default, type, range and unit come from its
dataclass field, and its description is the comment beside the field, or the comment lines above it.
"""

import ast
import functools
import inspect
import io
import re
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import typer
import yaml

from pgc3d.cli.app import app
from pgc3d.cli.options import MAKERS
from pgc3d.config import Config
from pgc3d.ranges import Range, ranges

NAME = "NAME"  # in the path of a setting, for a name that the user chooses
PLAIN = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", Path: "path"}
TITLES = {
    "run": "Run, models, inputs and files",
    "stages": "Stages and objectives",
    "representation": "Representations",
    "guidance": "Guidances",
    "clip": "Clipping rules",
    "cameras": "Cameras",
    "formula": "Formulas of score distillation",
    "material": "Materials",
}


def command_pages() -> dict[str, str]:
    """The Markdown of `commands/`, by path; the index is first."""
    found = dict(_leaves(typer.main.get_command(app), ()))
    leaves = {name: found[name] for name in (*MAKERS, *(name for name in found if name not in MAKERS))}
    rows = [
        f"| [`pgc3d {name}`]({_slug(name)}.md) | {_cell(leaf.help or '')} |" for name, leaf in leaves.items()
    ]
    index = ["# Commands", "", "`pgc3d COMMAND --help` prints the same in the terminal.", ""]
    index += ["| command | |", "|---|---|", *rows, ""]
    pages = {f"commands/{_slug(name)}.md": _command(name, leaf) for name, leaf in leaves.items()}
    return {"commands/index.md": "\n".join(index), **pages}


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The commands below a group, by the words that call them."""
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, child in command.commands.items():
        yield from _leaves(child, (*path, name))


def _command(name: str, command: Any) -> str:
    """The page of one command."""
    context = command.context_class(command, info_name=f"pgc3d {name}")
    usage = " ".join(["pgc3d", name, *(_usage(item) for item in command.params if _positional(item))])
    lines = [f"# pgc3d {name}", "", _text(command.help or ""), "", "```text", f"{usage} [OPTIONS]", "```", ""]
    for title, positional in (("Arguments", True), ("Options", False)):
        items = [item for item in command.params if _positional(item) == positional]
        records = [record for item in items if (record := item.get_help_record(context)) is not None]
        if records:
            lines += [f"## {title}", "", f"| {title[:-1].lower()} | meaning |", "|---|---|"]
            lines += [f"| {_code(left)} | {_cell(right)} |" for left, right in records]
            lines.append("")
    return "\n".join(lines)


def _positional(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _usage(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    return name if argument.required else f"[{name}]"


@dataclass(frozen=True)
class Section:
    """One dataclass of settings, and where it occurs."""

    kind: Any
    page: str
    path: str  # of the first occurrence

    @property
    def anchor(self) -> str:
        """Of the heading, the same however often the class occurs."""
        return str(self.kind.__name__).lower()

    @property
    def title(self) -> str:
        """The value of `kind` for a member of a family, else the last name of the path."""
        own = {item.name: item.default for item in fields(self.kind)}
        return str(own["kind"]) if "kind" in own else self.path.removesuffix(f".{NAME}").rpartition(".")[2]

    @property
    def link(self) -> str:
        """To the section, from another page of settings."""
        return f"[{self.title}]({self.page}.md#{self.anchor})"


def sections() -> dict[Any, Section]:
    """Every class of settings, by class, in the order in which a configuration holds them."""
    found: dict[Any, Section] = {}
    _collect(Config, "", "run", found)
    del found[Config]
    return found


def _collect(kind: Any, path: str, page: str, found: dict[Any, Section]) -> None:
    if kind in found:
        return
    found[kind] = Section(kind, page, path)
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        members = list(_members(hints[item.name]))
        named = typing.get_origin(hints[item.name]) is dict
        below = ".".join(part for part in (path, item.name, NAME if named else "") if part)
        for member in members:
            own = item.name if len(members) > 1 or item.name == "stages" else page
            _collect(member, below, own, found)


def _members(hint: Any) -> Iterator[Any]:
    """The dataclasses in a type."""
    if is_dataclass(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from _members(part)


def setting_pages() -> dict[str, str]:
    """The Markdown of `settings/`, by path; the index is first."""
    found = sections()
    pages: dict[str, list[Section]] = {}
    for section in found.values():
        pages.setdefault(section.page, []).append(section)
    rows = [
        f"| [{_title(page)}]({page}.md) | {', '.join(section.link for section in parts)} |"
        for page, parts in pages.items()
    ]
    index = [
        "# Settings", "",
        "Every setting of a run. Set one with `--set PATH=VALUE`, or in a YAML file",
        "that `--config FILE` reads. `pgc3d config show` prints all values that a command would use.", "",
        f"In a path, `{NAME}` is a name of your choice: that of a model, a stage or an objective.",
        "Settings of the last stage need no `stages.NAME` in front: `--set objectives.color.batch=2`.", "",
        "| page | parts |", "|---|---|", *rows, "",
    ]  # fmt: skip
    made = {f"settings/{page}.md": _setting_page(page, parts, found) for page, parts in pages.items()}
    return {"settings/index.md": "\n".join(index), **made}


def _title(page: str) -> str:
    return TITLES.get(page, page.replace("_", " ").capitalize())


def _setting_page(page: str, parts: list[Section], found: Mapping[Any, Section]) -> str:
    lines = [f"# {_title(page)}", ""]
    for section in parts:
        kind = section.kind
        lines += [f"## {section.title} {{#{section.anchor}}}", "", _place(section), "", _docstring(kind), ""]
        hints, known, notes = typing.get_type_hints(kind), ranges(kind), comments(kind)
        rows = [
            f"| `{name}` | {_default(item, found)} | {_values(hints[name], known.get(name), found)} "
            f"| {_sentence(notes[name])} |"
            for item in fields(kind)
            if (name := item.name) != "kind"
        ]
        lines += ["| setting | default | values | meaning |", "|---|---|---|---|", *rows, ""] if rows else []
    return "\n".join(lines)


def _place(section: Section) -> str:
    """Where a section's settings stand in a configuration."""
    own = {item.name for item in fields(section.kind)}
    kind = f", with `kind: {section.title}`" if "kind" in own else ""
    return f"At `{section.path}`{kind}."


def _sentence(text: str) -> str:
    """A comment as the text of a cell; its first letter is a capital one where it begins a word."""
    return _cell(text[:1].upper() + text[1:] if re.match(r"[a-z]{2,}[ ,;]", text) else text)


def _docstring(kind: Any) -> str:
    """The description of a class; none where `dataclass` made it from the signature."""
    text = inspect.getdoc(kind) or ""
    return "" if text.startswith(f"{kind.__name__}(") else _text(text)


def _default(item: Field[Any], found: Mapping[Any, Section]) -> str:
    if item.default is MISSING and item.default_factory is MISSING:
        return "none: must be given"
    value = item.default_factory() if item.default_factory is not MISSING else item.default
    if is_dataclass(value):
        return found[type(value)].link
    if isinstance(value, dict) and any(is_dataclass(entry) for entry in value.values()):
        return ", ".join(f"`{name}`" for name in value)
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def _values(hint: Any, limits: Range | None, found: Mapping[Any, Section]) -> str:
    """The values that a setting accepts: links to its members, choices, or a type with its range and unit."""
    links = [found[kind].link for kind in _members(hint)]
    named = "by names of your choice: " if typing.get_origin(hint) is dict else ""
    optional = " or `null`" if types.NoneType in typing.get_args(hint) else ""
    if links:
        return f"{named}{', '.join(links)}{optional}"
    choices = list(_choices(hint))
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices) + optional
    text = _type(hint, limits)
    if limits is not None:
        text += f" in {str(limits).removeprefix('lie in ').replace(', or be ', ', or ')}"
        text += f"; {limits.unit}" if limits.unit else ""
    return _cell(named + text + optional)


def _choices(hint: Any) -> Iterator[str]:
    if typing.get_origin(hint) is typing.Literal:
        yield from map(str, typing.get_args(hint))
        return
    for part in typing.get_args(hint):
        yield from _choices(part)


def _type(hint: Any, limits: Range | None) -> str:
    """The type of a setting in words; a schedule and a pair are tuples in the code."""
    if limits is not None and limits.schedule:
        return "number or [schedule](../conventions.md#schedules)"
    if limits is not None and limits.pair:
        return "`[low, high]`"
    parts = [part for part in typing.get_args(hint) if part not in (..., types.NoneType)]
    if typing.get_origin(hint) is tuple:
        many = typing.get_args(hint)[-1] is ...
        plural = "" if parts[0] is str else "s"
        return f"list of {'' if many else f'{len(parts)} '}{_type(parts[0], None)}{plural}"
    if typing.get_origin(hint) is dict:
        return _type(parts[-1], None)
    return PLAIN.get(hint) or " or ".join(_type(part, None) for part in parts)


@functools.cache
def comments(kind: Any) -> dict[str, str]:
    """The comments of a class's fields: beside a field, or in the lines above it."""
    source = Path(inspect.getfile(kind)).read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    every = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {row for row, token in every.items() if token.line.lstrip().startswith("#")}
    texts = {row: token.string.removeprefix("#").strip() for row, token in every.items()}
    body = next(node.body for node in ast.walk(ast.parse(source)) if _is_class(node, kind.__name__))
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            rows = [row for row in range(first, (node.end_lineno or node.lineno) + 1) if row in texts]
            found[node.target.id] = " ".join(texts[row] for row in rows)
    return found


def _is_class(node: ast.AST, name: str) -> typing.TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and node.name == name


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _code(text: str) -> str:
    """A code span that may hold the separators of a table."""
    return f"`{text}`"


def _cell(text: str) -> str:
    """Text for a cell of a table; what stands in backticks stays as it is."""
    return re.sub(r"(`[^`]*`)|\|", lambda match: match[1] or "\\|", " ".join(_text(text).split()))


def _text(text: str) -> str:
    """Text whose angle brackets and asterisks are no markup."""
    marks = {"<": "&lt;", "*": "\\*"}
    return re.sub(r"(`[^`]*`)|[<*]", lambda match: match[1] or marks[match[0]], text)
