"""All clipping rules: their configurations, and short texts of them for options and tables."""

from collections.abc import Callable
from functools import partial

from pgc3d import pgc
from pgc3d.adaptive_clip import AdaptiveClip
from pgc3d.clip_text import split_rule, wrong_number
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
    name, number = split_rule(text)
    try:
        clip = RULES[name](**({} if number is None else {NUMBERS.get(name, "threshold"): number}))
        check(clip)
        return clip
    except ValueError as error:
        raise wrong_number(text, error) from error
