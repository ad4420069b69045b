"""Docstrings, comments and messages use the terms of the field, and no private words."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "pgc3d"
WORDS = {
    r"pictures?": "image",
    r"photos?|photographs?": "image, input image",
    r"teachers?": "guidance model, diffusion prior",
    r"outlines?": "silhouette",
    r"rooms?": "capacity, margin",
    r"in pieces": "in micro-batches",
    r"canvas(?:es)?|paint(?:s|ed|ings?)?": "prepared mesh, texture",
    r"(?:an?|the|what|each|its) shares?|shares? of": "fraction",
    r"wish(?:es)?|wants?|wanted": "needs, target",
    r"asks?|asked": "needs, requests, evaluates",
    r"believe[sd]?": "estimates",
    r"says?|said|tells?|told": "states, has, receives",
    r"judge[sd]?": "evaluates, compares",
    r"look(?:s|ed)? at": "reads, evaluates",
    r"knows?|knew": "supports, has",
    r"thinks?|hopes?|hears?|heard|speaks?": "no metaphor of people",
    r"faults?": "error, invalid",
    r"signal levels?": "alphas_cumprod",
    r"step edges?": "between two steps",
    r"melts?|riddles?": "a plain word",
}
# words that are names here: settings, files, options and parameters that are quoted in messages
EXCEPTIONS = re.compile(
    r"`[^`]*`|--[\w-]+|\{[^{}]*\}|\b\w+[./]\w[\w./]*|\b(?:say|wanted|canvas|judge)(?=:)|^\W*\w+\W*$",
    re.MULTILINE,
)
PATTERN = re.compile(rf"(?<![\w.-])(?:{'|'.join(WORDS)})(?![\w-])", re.IGNORECASE)
TEXTS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def found(path: Path) -> list[str]:
    """`file:line: word` for each private word in a file's strings and comments."""
    lines = []
    with path.open("rb") as stream:
        for token in tokenize.tokenize(stream.readline):
            if token.type in TEXTS:
                text = EXCEPTIONS.sub(lambda match: "\n" * match[0].count("\n"), token.string)
                for number, line in enumerate(text.split("\n"), token.start[0]):
                    lines += [f"{path}:{number}: {word[0]}" for word in PATTERN.finditer(line)]
    return lines


def package(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else "top level"


PACKAGES = sorted({package(path) for path in ROOT.rglob("*.py")})


@pytest.mark.parametrize("name", PACKAGES)
def test_there_are_no_private_words(name):
    files = [path for path in sorted(ROOT.rglob("*.py")) if package(path) == name]
    lines = [line for path in files for line in found(path)]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('"""The picture that a teacher wants."""', 3),
        ("# what a file says of its photo", 2),
        ('raise ValueError(f"a picture must be {picture}")', 1),
        ('x = "photo"', 0),
        ("picture = 1  # see `photo.border` and --photo", 0),
        ('"""\n\ncanvas: RGBA.\nthe painting\n"""', 1),
        ("# grids share an edge, a shared edge", 0),
    ],
)
def test_words_are_counted_in_texts_and_not_in_names(tmp_path, text, count):
    (tmp_path / "a.py").write_text(text + "\n")
    assert len(found(tmp_path / "a.py")) == count
