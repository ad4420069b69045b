"""All clipping rules: their configurations, and short texts of them for options and tables."""

import re
from collections.abc import Callable
from functools import partial

from pgc3d import pgc
from pgc3d.adaptive_clip import AdaptiveClip
from pgc3d.errors import ConfigError
from pgc3d.layers import nearest
from pgc3d.ranges import check
from pgc3d.relative_clip import RelativeClip

ClipConfig = (
    pgc.PixelClip
    | pgc.ChannelClip
    | pgc.PngdClip
    | pgc.GlobalScale
    | pgc.ParameterClip
    | pgc.NoClip
    | AdaptiveClip
    | RelativeClip
)
RULES: dict[str, Callable[..., ClipConfig]] = {
    "none": pgc.NoClip,
    "pixel": pgc.PixelClip,
    "l2": partial(pgc.PixelClip, norm="l2"),
    "channel": pgc.ChannelClip,
    "pngd": pgc.PngdClip,
    "global": pgc.GlobalScale,
    "parameter": pgc.ParameterClip,
    "adaptive": AdaptiveClip,
    "relative": RelativeClip,
}
# What a number sets, if not the threshold.
NUMBERS = {"parameter": "max_norm", "adaptive": "quantile", "relative": "factor"}


def parse_rule(text: str) -> ClipConfig:
    """The rule of a short text: a kind, a kind and its number as in "pngd=0.3", or the threshold of `pixel`.

    Raises:
        ConfigError: there is no such rule, or its number is out of range.
    """
    kind, equals, number = ("pixel", "=", text) if re.match(r"[.\d]", text) else text.partition("=")
    if kind not in RULES or (kind == "none" and equals):
        raise ConfigError(
            f"a rule must be one of {', '.join(RULES)}, or a threshold, got {text!r}{nearest(kind, RULES)}"
        )
    try:
        clip = RULES[kind](**({NUMBERS.get(kind, "threshold"): float(number)} if equals else {}))
        check(clip)
        return clip
    except ValueError as error:
        raise ConfigError(f"the rule {text!r} must have a number that fits, got: {error}") from error
