"""The words of cameras in prompts, as settings; `prompts` makes the texts."""

import math
import string
from collections.abc import Collection
from dataclasses import dataclass, field

from pgc3d.ranges import KEY, Range, check, number

SLOTS = frozenset({"prompt", "azimuth", "elevation", "background"})


@dataclass(frozen=True)
class ViewPromptConfig:
    """The words of a camera and a background in prompts.

    Azimuth sectors are in the order of growing azimuth, and the first is centred on the front (azimuth 0).
    They are those of the table `azimuth_words` / `azimuth_widths_degrees`, or, where `azimuth_step_degrees`
    is positive, equal sectors named by `azimuth_number` with the centre in whole degrees in [0, 360). From
    the elevation `overhead_above_degrees` on, `overhead_word` replaces the sector's word (90 disables that).
    `elevation_words` name the bands between `elevation_bounds_degrees`, from below. The slot {background} is
    the name of the nearest colour in `backgrounds`.
    """

    # With the slots {prompt}, {azimuth}, {elevation} and {background}.
    template: str = "{prompt}, {azimuth} view"
    # Names of the sectors, from the front on.
    azimuth_words: tuple[str, ...] = ("front", "side", "back", "side")
    # Widths of the sectors.
    azimuth_widths_degrees: tuple[float, ...] = number(
        (90.0, 90.0, 90.0, 90.0), 0.0, 360.0, unit="degrees", above=True
    )
    # Width of equal sectors, in place of the two lists.
    azimuth_step_degrees: float = number(0.0, 1.0, 360.0, unit="degrees", also={0: "the table"})
    azimuth_number: str = "azimuth {degrees}"  # name of such a sector
    # Elevation from which on `overhead_word` is used; 90 disables it.
    overhead_above_degrees: float = number(60.0, -90.0, 90.0, unit="degrees")
    overhead_word: str = "overhead"  # in place of the sector's word
    # Between the bands of elevation.
    elevation_bounds_degrees: tuple[float, ...] = number((), -90.0, 90.0, unit="degrees")
    elevation_words: tuple[str, ...] = ("",)  # names of the bands, from below
    # The colours that a prompt can name.
    backgrounds: dict[str, tuple[float, float, float]] = field(
        default_factory=lambda: {"white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0)},
        hash=False,
        metadata={KEY: Range(0.0, 1.0, unit="in sRGB")},
    )

    def __post_init__(self) -> None:
        check(self)
        _check_slots("template", self.template, SLOTS, "prompt")
        _check_slots("azimuth_number", self.azimuth_number, {"degrees"}, "degrees")
        step = self.azimuth_step_degrees
        if step > 0 and not math.isclose(360.0 / step, round(360.0 / step), rel_tol=1e-9):
            raise ValueError(f"azimuth_step_degrees must divide 360, or be 0 for the table, got {step}")
        if len(self.azimuth_words) != len(self.azimuth_widths_degrees):
            raise ValueError(
                "azimuth_words and azimuth_widths_degrees must have the same length, got "
                f"{len(self.azimuth_words)} and {len(self.azimuth_widths_degrees)}"
            )
        if not math.isclose(sum(self.azimuth_widths_degrees), 360.0):
            raise ValueError(
                f"azimuth_widths_degrees must sum to 360, got {sum(self.azimuth_widths_degrees)}"
            )
        bounds = self.elevation_bounds_degrees
        if sorted(set(bounds)) != list(bounds) or len(self.elevation_words) != len(bounds) + 1:
            raise ValueError(
                "elevation_bounds_degrees must increase and have one entry less than elevation_words, "
                f"got {list(bounds)} for {len(self.elevation_words)} words"
            )
        if not self.backgrounds:
            raise ValueError("backgrounds must name at least one colour, got none")


def _check_slots(name: str, template: str, allowed: Collection[str], required: str) -> None:
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{name} must have matching braces, got {template!r}") from error
    slots = {slot for slot, _, _ in parts}
    if any(form or conversion for _, form, conversion in parts):
        raise ValueError(f"{name} must have plain slots, as {{{required}}}, got {template!r}")
    if not slots <= set(allowed):
        raise ValueError(f"{name} must use only the slots {sorted(allowed)}, got {template!r}")
    if required not in slots:
        raise ValueError(f"{name} must hold {{{required}}}, got {template!r}")
