"""Every command line, setting, code block and link of the README and of the documentation is right."""

import ast
import importlib
import posixpath
import re
from contextlib import suppress

import pytest
import typer
import yaml
from documentation import ALL, LINK, PAGES, README, ROOT
from test_cli import checkpoint, run  # noqa: F401 - fixtures
from test_words import PATTERN

from pgc3d.cli.app import app
from pgc3d.cli.batch_rows import read_jobs
from pgc3d.cli.options import MAKERS, runs_of
from pgc3d.config import load_config
from pgc3d.evaluation.items import read_items

COMMANDS = typer.main.get_command(app)
GENERATED = ("commands/", "settings/", "changelog.md")  # in the site alone
TINY = (
    "run.steps=2", "run.resolution=[32]", "run.resolution_until=[]", "objectives.color.batch=1",
    "representation.resolution=16", "export.texture_size=64", "logging.preview_every=0",
)  # fmt: skip
DEEPER = {"--set", "--config", "--clip", "--pipeline", "--style", "--model", "--refine", "--prompt"}
MissingParameter = next(  # wherever typer keeps click's
    kind for kind in typer.BadParameter.__subclasses__() if kind.__name__ == "MissingParameter"
)
of_each_page = pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)


def leaves(command):
    for child in getattr(command, "commands", {}).values():
        yield from leaves(child) if hasattr(child, "commands") else (child,)


def require_parsed(words, command=COMMANDS, name="pgc3d"):
    """Parse a command line as the command itself does, without running it."""
    if not hasattr(command, "commands"):
        command.make_context(name, list(words))
        return
    assert words, f"{name} must have a command"
    assert words[0] in command.commands, f"{name} has no command {words[0]!r}"
    require_parsed(words[1:], command.commands[words[0]], f"{name} {words[0]}")


@of_each_page
def test_pages_have_a_title_and_a_text(page):
    title, _, text = page.text.partition("\n")
    assert title.startswith("# ")
    assert len(text) > 300


def test_there_is_a_list_of_changes():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changes\n\n## ")
    assert text.count("\n- ") > 20


@of_each_page
def test_command_lines_are_valid(page, tmp_path, monkeypatch):
    """With the configuration of the run that they would begin, where parsing does not check their values."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for block in page.blocks("yaml"):
        (tmp_path / block.attributes.get("title", "untitled.yaml")).write_text(block.text)
    for words in page.command_lines():
        require_parsed(words)
        if words[0] in MAKERS and DEEPER & set(words):
            assert runs_of(words, notify=lambda line: None), words


@of_each_page
def test_commands_in_the_text_exist(page):
    for words in page.mentions():
        with suppress(MissingParameter):  # of a command that is named without its arguments
            require_parsed(words)


@pytest.mark.parametrize("line", ["txt x", "text x --guidnce mini", "text x --quality best", "models"])
def test_wrong_command_lines_are_found(line):
    with pytest.raises(Exception, match=r"'txt'|guidnce|best|must have a command"):
        require_parsed(line.split())


@of_each_page
def test_options_in_the_text_exist(page):
    known = {option for command in leaves(COMMANDS) for item in command.params for option in item.opts}
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").rglob("*.py"))
    for span in re.findall(r"`(--[^`]*)`", page.prose):
        for option in re.findall(r"--[a-z][\w-]*", span):
            assert option in known or f'"{option}"' in scripts, f"{page.name}: {option}"
        if setting := re.match(r"--set ([a-z][\w.]*=[\w.-]+)$", span):
            load_config(overrides=[setting[1]])


@of_each_page
def test_configurations_are_valid(page, tmp_path):
    if page.path.parent.name == "extending":
        return  # see test_docs_extending.py
    for block in page.blocks("yaml"):
        content = yaml.safe_load(block.text)
        if "apiVersion" in content:
            continue  # of Kubernetes, see test_cluster.py
        if isinstance(content, dict):
            load_config([content])
            continue
        for folder, name in ((".", "crate.glb"), ("photos", "car.png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).touch()
        (tmp_path / "jobs.yaml").write_text(block.text)
        assert len(read_jobs(tmp_path / "jobs.yaml", lambda line: None)) >= len(content)


@of_each_page
def test_code_runs(page, tmp_path, monkeypatch, checkpoint):
    """The blocks of a page in its order, with the names of those before; runs have a tiny model."""
    if page.path.parent.name == "extending":
        return  # see test_docs_extending.py
    monkeypatch.chdir(tmp_path)
    names, tiny = {}, ", ".join(map(repr, (*TINY, f"models.text.name={checkpoint}")))
    for block in page.blocks("python"):
        code = "\n" * block.line + re.sub(r'"run\.steps=\d+"', lambda _: tiny, block.text)
        compiled = compile(code, page.name, "exec")
        if block.attributes.get("data-run") == "compile":
            require_imports(code)
        else:
            exec(compiled, names)


def test_the_list_of_items_is_valid(tmp_path):
    (block,) = (block for page in ALL for block in page.blocks("json"))
    for name in ("red-chair.png", "red-chair.glb"):
        (tmp_path / name).touch()
    (tmp_path / block.attributes["title"]).write_text(block.text)
    assert len(read_items(tmp_path / block.attributes["title"])) == 2


@of_each_page
def test_there_are_no_private_words(page):
    plain = re.sub(r'`[^`]*`|\]\([^)]*\)|"[^"]*"', "", page.prose)
    assert not [match[0] for match in PATTERN.finditer(plain)]


def require_imports(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@of_each_page
def test_links_lead_to_files(page):
    folder = posixpath.dirname(page.name)
    for link in LINK.findall(page.prose):
        path = link.partition("#")[0]
        if not path or re.match(r"https?:", path):
            continue
        target = posixpath.normpath(posixpath.join(folder, path))
        inside = posixpath.relpath(target, PAGES.relative_to(ROOT).as_posix())
        assert (ROOT / target).is_file() or inside.startswith(GENERATED), f"{page.name}: {link}"


@of_each_page
def test_files_that_the_text_names_exist(page):
    """Apart from those that an example adds."""
    added = {block.attributes.get("title") for block in page.blocks("python")}
    for name in re.findall(r"(?<![\w/.])(?:scripts|tests|pgc3d|configs|docs)/[\w./-]+\.[a-z]+\b", page.text):
        assert (ROOT / name).is_file() or name in added, f"{page.name}: {name}"


def test_errors_of_the_troubleshooting_page_are_those_of_the_code():
    page = next(page for page in ALL if page.path.stem == "troubleshooting")
    files = [*(ROOT / "pgc3d").rglob("*.py"), *(ROOT / "scripts").glob("*.sh")]
    code = "".join(path.read_text() for path in files)
    quoted = re.findall(r"^\*\*`([^`]+)`\*\*", page.prose, re.MULTILINE)
    assert len(quoted) > 3
    for text in quoted:
        assert text in code or text == "pgc3d: command not found"  # of the shell


def test_the_readme_is_short_and_links_to_no_generated_page():
    assert len(README.text.splitlines()) <= 100
    for link in LINK.findall(README.prose):
        assert not any(f"pages/{name}" in link for name in GENERATED)
