"""Every error that a user can cause has one form: what must hold, then what was found."""

import ast
import re
from pathlib import Path

import pytest

from pgc3d import errors

PACKAGE = Path(errors.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
KINDS = {name for name, value in vars(errors).items() if isinstance(value, type)}
FORM = re.compile(r"\bmust\b(.*\bgot\b|.*, but |[^,]*; )")  # or advice alone, where nothing was found
# Texts that pass on what a library or an inner error states, and OmegaConf's own line about a key.
PASSED_ON = re.compile(
    r"^(\{[^{}]*\}[:;, ]*)+(it is that of \{path\})?$|: Key \{key\} not in |, line \{number\}: "
)
SHARED = {"{SUPPORTED}", "{requirement}", "{rule}", "{advice}", "{message}"}  # constants with the first half


def text_of(node):
    """The text of a literal, with each inserted expression as {...}; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "{" + ast.unparse(part.value) + "}"
            for part in node.values
        )
    return None


def texts():
    """Every literal given to an error of `errors.py`, or raised by a configuration, with its place."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        checks = [node for node in ast.walk(tree) if getattr(node, "name", "") == "__post_init__"]
        for kinds, root in [(KINDS, tree), *(({"ValueError"}, check) for check in checks)]:
            for node in ast.walk(root):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds and node.args:
                    text = text_of(node.args[0])
                    if text is not None:
                        yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text


def has_the_form(text):
    shared = any(text.startswith(name) for name in SHARED) and re.search(r"\bgot\b|^\{\w+\}$", text)
    return bool(FORM.search(text) or PASSED_ON.search(text) or shared)


def test_errors_state_what_must_hold_and_what_was_found():
    wrong = [f"{place}: {text}" for place, text in texts() if not has_the_form(text)]
    assert not wrong, "\n".join(wrong)
    assert len(list(texts())) > 200


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("the image must be a file, got none at {path}", True),
        ("the shape must stay closed, but {error} after {count} recoveries; lower lr_sdf", True),
        ("the prompt must not be empty; describe the asset", True),
        ("the image must be whole, {path} is damaged; copy it again", False),
        ("the image must be a file, found none at {path}", False),
        ("a map must be finite, {path} is not", False),
        ("the rasterizer needs triton, got none", False),
        ("{SUPPORTED}, {name} holds no pipeline", False),
        ("{SUPPORTED}, got {name}", True),
    ],
)
def test_forms_are_told_apart(text, right):
    assert has_the_form(text) is right
