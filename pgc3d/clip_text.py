"""The short texts of clipping rules, as "pngd=0.3"; cheap to import. `clip_rules` makes the rules."""

import re

from pgc3d.errors import ConfigError
from pgc3d.layers import nearest

NAMES = (
    "none",
    "pixel",
    "l2",
    "channel",
    "pngd",
    "global",
    "parameter",
    "adaptive",
    "relative",
)


def split_rule(text: str) -> tuple[str, float | None]:
    """The name of a rule and its number, None where the text has none; a number alone is that of `pixel`.

    Raises:
        ConfigError: there is no such rule, or its number is none.
    """
    name, equals, number = ("pixel", "=", text) if re.match(r"[.\d]", text) else text.partition("=")
    if name not in NAMES or (name == "none" and equals):
        raise ConfigError(
            f"a rule must be one of {', '.join(NAMES)}, or a threshold, got {text!r}{nearest(name, NAMES)}"
        )
    try:
        return name, float(number) if equals else None
    except ValueError as error:
        raise wrong_number(text, error) from error


def wrong_number(text: str, error: ValueError) -> ConfigError:
    """The error of a rule whose number does not fit."""
    return ConfigError(f"the rule {text!r} must have a number that fits, got: {error}")
