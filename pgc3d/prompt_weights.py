r"""Weights of words in prompts: `(rusty:1.3)`.

The rules:
- `(text:1.3)` multiplies the weight of a text, 0 to 4, in prompts and negative prompts of text models.
- Parentheses may be nested, and weights multiply: in `((red:1.2) chair:1.5)`, red has 1.8.
- Parentheses without a number are text: `a chair (red)` is what it looks like. So are square brackets.
- `\(`, `\)` and `\:` are the characters: `a screen \(16:9)`, `(size 2\:1:1.2)`.

A token's embedding e becomes e_empty + weight (e - e_empty), with the embedding of the empty prompt at the
token's place: linear in the weight, unchanged for 1, and the empty prompt's for 0. ComfyUI weights prompts so
(`comfy/sd1_clip.py`). The pooled embedding of SDXL has no tokens and stays.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from pgc3d.errors import InputError
from pgc3d.records import is_utf8

LARGEST = 4.0
_TOKEN = re.compile(r"\\[():]|[()]|[^\\()]+|\\")
_WEIGHT = re.compile(r"\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*$")


@dataclass(frozen=True)
class Part:
    """A piece of a prompt's plain text, and its weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class _Piece:
    text: str
    weight: float = 1.0
    escaped: bool = False  # a character that was escaped, and ends no weight


def parse_prompt(prompt: str) -> tuple[Part, ...]:
    """The parts of a prompt in their order; neighbours have different weights.

    Args:
        prompt: with or without weights.

    Raises:
        InputError: a weight is not in [0, 4].
    """
    groups: list[list[_Piece]] = [[]]
    for match in _TOKEN.finditer(prompt):
        token = match[0]
        if token == "(":
            groups.append([])
        elif token == ")" and len(groups) > 1:
            inner = groups.pop()
            groups[-1] += _closed(inner, prompt)
        else:
            is_escaped = len(token) == 2 and token[0] == "\\"
            groups[-1].append(_Piece(token[-1] if is_escaped else token, escaped=is_escaped))
    pieces = groups[0]
    for unclosed in groups[1:]:
        pieces += [_Piece("("), *unclosed]
    merged = groupby(pieces, key=lambda piece: piece.weight)
    parts = (Part("".join(piece.text for piece in same), weight) for weight, same in merged)
    return tuple(part for part in parts if part.text)


def _closed(inner: Sequence[_Piece], prompt: str) -> list[_Piece]:
    """The pieces of a pair of parentheses, weighted where they end in a number, else with the parentheses."""
    last = inner[-1] if inner else None
    match = _WEIGHT.search(last.text) if last is not None and not last.escaped else None
    if last is None or match is None or last.weight != 1.0:
        return [_Piece("("), *inner, _Piece(")")]
    weight = float(match[1])
    if not 0.0 <= weight <= LARGEST:
        raise InputError(
            f"a weight in a prompt must lie in [0, {LARGEST:g}], got {match[1]} in {prompt!r}; "
            r"for parentheses as text write \( and \)"
        )
    kept = [*inner[:-1], replace(last, text=last.text[: match.start()])]
    return [replace(piece, weight=piece.weight * weight) for piece in kept]


def plain_text(prompt: str) -> str:
    """The prompt without weights and escapes, as other programs and people read it.

    Raises:
        InputError: a weight is not in [0, 4].
    """
    return "".join(part.text for part in parse_prompt(prompt))


def weight_note(prompt: str) -> str:
    """A line about the weights that a prompt has; empty where it has none."""
    weighted = [part for part in parse_prompt(prompt) if part.weight != 1.0 and part.text.strip()]
    found = ", ".join(f"{part.text.strip()!r} {part.weight:g}" for part in weighted)
    return f"weights in the prompt: {found}" if found else ""


def token_weights(parts: Sequence[Part], offsets: Sequence[tuple[int, int]]) -> list[float]:
    """The weight of each token of the plain text.

    Args:
        parts: of the prompt.
        offsets: (start, end) of each token's characters; those without characters, as padding, have weight 1.

    Returns:
        The mean over the characters of each token, as one may lie in two parts.
    """
    characters = [part.weight for part in parts for _ in part.text]
    return [
        sum(characters[start:end]) / (end - start) if 0 <= start < end <= len(characters) else 1.0
        for start, end in offsets
    ]


def require_prompt(prompt: str) -> None:
    """Check that a prompt can be used.

    Raises:
        InputError: it is empty, holds bytes that are not UTF-8, or a weight that is not valid.
    """
    if not is_utf8(prompt):
        raise InputError(
            "the prompt must be UTF-8 text, got bytes that are not; check the terminal's encoding"
        )
    if not plain_text(prompt).strip():
        raise InputError('the prompt must not be empty; describe the asset, as in pgc3d text "a hamburger"')
