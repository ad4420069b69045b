"""Parts of HTML pages; every text from outside is escaped here."""

import base64
from collections.abc import Sequence
from html import escape

ABSENT = "-"
Rows = Sequence[tuple[str, Sequence[str]]]


def table(rows: Rows, heads: Sequence[str] = ()) -> str:
    """A table with a name and a value for each run in a row; rows whose values differ are marked.

    Args:
        rows: texts, not yet escaped.
        heads: of the columns of values.
    """
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    parts = [f"<thead><tr><th></th>{top}</tr></thead>"] if heads else []
    for name, values in rows:
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        mark = ' class="differs"' if len(set(values)) > 1 else ""
        parts.append(f'<tr{mark}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return f'<div class="scroll"><table>{"".join(parts)}</table></div>' if rows else ""


def listing(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without a comparison: texts, not yet escaped, below the heads of their columns."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
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
