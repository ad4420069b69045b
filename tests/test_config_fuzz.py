"""Any value of any number: one line, or a configuration that builds and takes two steps."""

import math
from dataclasses import dataclass, fields

import pytest
import torch
from config_sweep import STAGE, VALUES, Bench, Setting, load, settings, written
from omegaconf import OmegaConf

from pgc3d.config import Config, ObjectiveConfig, dump_config, load_config
from pgc3d.errors import ConfigError
from pgc3d.pgc import PixelClip
from pgc3d.ranges import MAX_ENTRIES, Range, check, number, ranges, schedule, span

SETTINGS = settings()
IDS = [f"{'/'.join(item.partition('=')[2] for item in place.base[-1:])}:{place.path}" for place in SETTINGS]
NEVER = (".nan", ".inf", "-.inf", "-1e9", "1e30", "text", "true", "{}")  # no number is one of these


def outcome(place: Setting, value: str, folder, *, by_file: bool) -> Config | None:
    """The configuration, or None where the value was refused in one line that names the setting."""
    try:
        return load(place, written(place, value), folder, by_file=by_file)
    except ConfigError as error:
        line = str(error)
    assert "\n" not in line
    assert place.name in line
    return None


def takes_two_steps(place: Setting, config: Config, bench: Bench) -> None:
    if place.path.startswith("image"):
        bench.frame(config)
    elif "controls" not in place.path:  # it names a model that is not there
        model = ".guidance." in place.path or place.path.startswith(("view.", "models."))
        bench.run(config, model=model)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"))


def test_the_walk_reaches_every_family():
    paths = {place.path for place in SETTINGS}
    assert {f"{STAGE}.steps", f"{STAGE}.representation.color_field.log2_rows"} <= paths
    assert {"run.micro_batch", f"{STAGE}.objectives.color.clip.decay"} <= paths
    assert {f"{STAGE}.objectives.color.cameras.fill", "models.text.view_prompts.backgrounds.white"} <= paths
    assert len(SETTINGS) > 90


@pytest.mark.parametrize("place", SETTINGS, ids=IDS)
def test_every_number_has_a_range(place):
    found = ranges(place.owner)[place.name]
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)


@pytest.mark.parametrize("index", range(len(NEVER)), ids=NEVER)
def test_what_is_no_number_is_refused_everywhere(index, tmp_path):
    value = NEVER[index]
    for place in SETTINGS if index == 0 else SETTINGS[index::8]:  # all of them in the slow test
        if not (value == "{}" and "backgrounds" in place.path):
            assert outcome(place, value, tmp_path, by_file=False) is None, place.path


@pytest.mark.parametrize(
    "names",
    [
        ("representation.lr_sdf", "representation.eikonal", "representation.roughness"),
        ("representation.deformation_limit", "representation.redistance_every", "optimizer.betas"),
        ("objectives.color.clip.decay", "objectives.color.cameras.spread_degrees", "image.border"),
    ],
)
def test_zero_where_it_is_valid_takes_two_steps(names, bench, tmp_path):
    for place in SETTINGS:
        if place.path.removeprefix(f"{STAGE}.") in names:
            config = outcome(place, "0", tmp_path, by_file=False)
            assert config is not None
            takes_two_steps(place, config, bench)


@pytest.mark.slow
@pytest.mark.parametrize("by_file", [False, True], ids=["set", "file"])
@pytest.mark.parametrize("place", SETTINGS, ids=IDS)
def test_any_value_is_refused_or_takes_two_steps(place, by_file, bench, tmp_path):
    for value in VALUES:
        config = outcome(place, value, tmp_path, by_file=by_file)
        if config is not None:
            assert load_config([OmegaConf.to_container(OmegaConf.create(dump_config(config)))]) == config
            takes_two_steps(place, config, bench)


def ends(found: Range, *, whole: bool) -> list[float]:
    """The least and the largest values of a range that a small computer can bear."""
    low = found.low + (1 if whole else 1e-3 * (found.high - found.low)) * found.above
    high = found.high - (1 if whole else 1e-3 * (found.high - found.low)) * found.below
    return [low, high]


HEAVY = {  # at the upper end more than a test may use, or more than the other settings here allow
    "resolution", "objectives.color.batch", "representation.resolution",
    "representation.color_field.log2_rows",
    "objectives.color.guidance.resolution", "image.size", "representation.image_size",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("place", SETTINGS, ids=IDS)
def test_both_ends_of_every_range_take_two_steps(place, bench, tmp_path):
    found = ranges(place.owner)[place.name]
    for index, end in enumerate(ends(found, whole=place.whole)):
        if index == 1 and place.path.removeprefix(f"{STAGE}.") in HEAVY:
            continue
        value = max(end, found.multiple * 8) if found.multiple > 1 else end
        text = place.written(repr(int(value) if place.whole else float(value)))
        config, line = None, ""
        try:
            config = load(place, text, tmp_path, by_file=False)
        except ConfigError as error:
            line = str(error)
        assert f"{place.name} must lie in" not in line  # what two settings share may be wrong
        if config is not None:
            takes_two_steps(place, config, bench)


def test_range_says_what_it_holds():
    assert str(Range(0, 1, above=True)) == "lie in (0, 1]"
    assert (
        str(Range(8, 4096, multiple=8, also={0: "none"}))
        == "lie in [8, 4096], a multiple of 8, or be 0 for none"
    )
    assert [Range(8, 24, multiple=8, also={0: "none"}).holds(v) for v in (0, 1, 8, 12, 24, 32)] == [
        True, False, True, False, True, False,
    ]  # fmt: skip
    assert not Range(-1e300, 1e300).holds(math.nan)
    assert not Range(-1e300, 1e300).holds(math.inf)


@dataclass(frozen=True)
class New:
    share: float = number(0.5, 0.0, 1.0, unit="of the views")
    count: int = number(3, 0, 9)
    draw: tuple[float, float] = span((0.1, 0.2), 0.0, 1.0)
    rate: tuple[float, ...] = schedule((1.0,), 0.0, 2.0)
    name: str = ""

    def __post_init__(self):
        check(self)


@pytest.mark.parametrize("value", [True, "1", None, torch.tensor(1.0), math.nan, math.inf, -1, 10])
def test_instances_are_checked_as_files_are(value):
    for name, wrong in {"share": value, "count": value, "draw": (0.0, value), "rate": (value,)}.items():
        with pytest.raises(ValueError, match=name):
            New(**{name: wrong})


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"share": 2.0}, r"share must lie in \[0, 1\], got 2.0"),
        ({"count": 2.0}, "count must be whole numbers, got 2.0"),
        ({"draw": (0.2, 0.1)}, r"draw must be \[low, high\] with low <= high, got \[0.2, 0.1\]"),
        ({"rate": (0.0, 3.0, 1.0, 0.0)}, r"rate must lie in \[0, 2\]"),
        ({"rate": (5.0, 1.0)}, r"rate: progress in a schedule must lie in \[0, 1\]"),
        ({"rate": (1.0,) * 1000}, f"rate must have at most {MAX_ENTRIES} entries, got 1000"),
        ({"name": "${x}"}, "name must be written out"),
        ({"name": "\udc80"}, "name must be UTF-8 text"),
    ],
)
def test_line_says_what_must_hold(wrong, line):
    with pytest.raises(ValueError, match=line):
        New(**wrong)
    assert New(rate=(0.0, 2.0, 1.0, 0.0)).draw == (0.1, 0.2)


def test_clip_of_an_objective_has_its_range_too():
    with pytest.raises(ValueError, match=r"threshold must lie in \[1e-12, 1000000\], got 1e\+300"):
        ObjectiveConfig(clip=PixelClip(threshold=1e300))


def test_ranges_and_units_can_be_listed():
    assert ranges(New)["share"].unit == "of the views"
    assert [item.name for item in fields(New)] == [*ranges(New), "name"]
    assert ranges(PixelClip)["threshold"] == Range(1e-12, 1e6)
