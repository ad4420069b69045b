"""Parts of HTML pages; every text from outside is escaped here."""

import base64
from collections.abc import Sequence
from html import escape

ABSENT = "-"
MARKED = ' class="differs"'
SHORT = 20  # characters of a cell that is never broken into lines
Rows = Sequence[tuple[str, Sequence[str]]]


def _cell(text: str, tag: str = "td", scope: str = "") -> str:
    """A cell of a table; the style sheet breaks long ones, and keeps short words and numbers whole.

    Args:
        text: not yet escaped.
        tag: of HTML.
        scope: of a head: row or col.
    """
    marks = (f' scope="{scope}"' if scope else "") + (' class="long"' if len(text) > SHORT else "")
    return f"<{tag}{marks}>{escape(text)}</{tag}>"


def table(rows: Rows, heads: Sequence[str] = ()) -> str:
    """A table with a name and a value for each run in a row; rows whose values differ are marked.

    Args:
        rows: texts, not yet escaped.
        heads: of the columns of values.
    """
    top = "".join(_cell(head, "th", "col") for head in heads)
    parts = [f"<thead><tr><th></th>{top}</tr></thead>"] if heads else []
    for name, values in rows:
        cells = "".join(map(_cell, values))
        mark = MARKED if len(set(values)) > 1 else ""
        parts.append(f"<tr{mark}>{_cell(name, 'th', 'row')}{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(parts)}</table></div>' if rows else ""


def listing(heads: Sequence[str], rows: Sequence[Sequence[str]], *, marked: str = "") -> str:
    """A table without a comparison: texts below the heads of their columns.

    Args:
        heads: of the columns, not yet escaped.
        rows: the cells of each, not yet escaped.
        marked: rows with this cell are marked.
    """
    top = "".join(_cell(head, "th", "col") for head in heads)
    body = "".join(
        f"<tr{MARKED if marked and marked in row else ''}>{''.join(map(_cell, row))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead>{body}</table></div>'


def section(name: str, title: str, body: str) -> str:
    """A section of a page, "" where it is empty.

    Args:
        name: its anchor.
        title: its heading, not yet escaped.
        body: HTML.
    """
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def columns(parts: Sequence[str]) -> str:
    """HTML side by side; "" where all of it is empty."""
    cells = "".join(f"<div>{part}</div>" for part in parts)
    return f'<div class="columns n{len(parts)}">{cells}</div>' if any(parts) else ""


def data_uri(content: bytes, kind: str) -> str:
    """The content of a file as a URI.

    Args:
        content: of the file.
        kind: its media type.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def bytes_text(size: int | float) -> str:
    """A number of bytes for people."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.2f} {unit}"
    return f"{size:.0f} B"
