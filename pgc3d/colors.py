"""Colours by name and by hexadecimal number."""

import re
from collections.abc import Mapping

COLORS: Mapping[str, tuple[float, float, float]] = {  # sRGB
    "white": (1.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 0.5, 0.0),
    "blue": (0.0, 0.0, 1.0),
}


def named_color(text: str) -> tuple[float, float, float] | None:
    """A colour in sRGB in [0, 1], by its name in `COLORS` or as #rrggbb or #rgb; None where it is neither."""
    if text in COLORS:
        return COLORS[text]
    if not re.fullmatch(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})", text):
        return None
    digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
    red, green, blue = (int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4))
    return red, green, blue
