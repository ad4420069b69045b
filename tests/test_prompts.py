import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pgc3d.prompts import prompt_notes, unknown_words, view_index, view_prompts
from pgc3d.view_prompts import ViewPromptConfig

NUMERIC = ViewPromptConfig(
    template="{prompt}, {azimuth}, seen from {elevation}, {background} background",
    azimuth_step_degrees=15.0,
    overhead_above_degrees=90.0,
    elevation_bounds_degrees=(-5.0, 20.0, 50.0),
    elevation_words=("below", "the side", "above", "high above"),
)
UNEVEN = ViewPromptConfig(azimuth_widths_degrees=(60.0, 120.0, 60.0, 120.0))
CONFIGS = pytest.mark.parametrize(
    "config", [ViewPromptConfig(), NUMERIC, UNEVEN], ids=["words", "numeric", "uneven"]
)


def texts(azimuths, elevations, config, background=(1.0, 1.0, 1.0)):
    azimuth = torch.tensor(azimuths).deg2rad()
    elevation = torch.tensor(elevations).deg2rad()
    index = view_index(azimuth, elevation, torch.tensor([background]).expand(len(azimuth), 3), config)
    known = view_prompts("a cat", config)
    return [known[i] for i in index.tolist()]


def test_default_words_are_those_of_the_large_models():
    found = texts(
        [0.0, 44.0, 46.0, -90.0, 134.0, 136.0, -180.0, 10.0], [0.0] * 7 + [61.0], ViewPromptConfig()
    )
    words = ["front", "front", "side", "side", "side", "back", "back", "overhead"]
    assert found == [f"a cat, {word} view" for word in words]
    assert view_prompts("a cat", ViewPromptConfig()) == [
        f"a cat, {word} view" for word in ("front", "side", "back", "overhead")
    ]


def test_numeric_sectors_are_centred_on_their_number():
    found = texts([-7.0, 7.0, 8.0, 352.0, 353.0, -20.0], [0.0] * 6, NUMERIC)
    numbers = [0, 0, 15, 345, 0, 345]
    assert found == [f"a cat, azimuth {number}, seen from the side, white background" for number in numbers]


def test_elevation_bands_and_nearest_background():
    found = texts([0.0] * 3, [-10.0, 25.0, 80.0], NUMERIC, background=(0.4, 0.5, 0.55))
    assert found == [
        f"a cat, azimuth 0, seen from {word}, gray background" for word in ("below", "above", "high above")
    ]


@CONFIGS
def test_text_set_equals_index_set(config):
    azimuth, elevation = torch.meshgrid(
        torch.arange(-360.0, 361.0, 1.5), torch.arange(-89.0, 90.0, 1.0), indexing="ij"
    )
    azimuth, elevation = azimuth.flatten().deg2rad(), elevation.flatten().deg2rad()
    found = set()
    for color in config.backgrounds.values():
        index = view_index(azimuth, elevation, torch.tensor([color]).expand(len(azimuth), 3), config)
        found |= set(index.tolist())
    assert found == set(range(len(view_prompts("a cat", config))))
    assert len(set(view_prompts("a cat", config))) == len(found)


def near_a_border(azimuth, config):
    """Whether float32 may put an azimuth in degrees into either of two sectors."""
    step = config.azimuth_step_degrees
    widths = [step] * round(360.0 / step) if step else config.azimuth_widths_degrees
    borders = (sum(widths[:index]) - widths[0] / 2 for index in range(len(widths)))
    return any(abs(math.remainder(azimuth - border, 360.0)) < 1e-2 for border in borders)


@CONFIGS
@given(azimuth=st.floats(-180, 180), elevation=st.floats(-89, 89), turns=st.integers(-2, 2))
@example(azimuth=-30.0, elevation=0.0, turns=1)
def test_a_whole_turn_changes_nothing(config, azimuth, elevation, turns):
    assume(not near_a_border(azimuth, config))
    found = texts([azimuth, azimuth + 360.0 * turns], [elevation, elevation], config)
    assert found[0] == found[1]


@given(azimuth=st.floats(0.0, 180.0), elevation=st.floats(-89, 89))
def test_word_sectors_are_mirror_symmetric(azimuth, elevation):
    for config in (ViewPromptConfig(), UNEVEN):
        assume(not near_a_border(azimuth, config))
        found = texts([azimuth, -azimuth], [elevation, elevation], config)
        assert found[0] == found[1]


def test_number_mirrors_to_its_negative():
    for degrees in (1.0, 30.0, 100.0, 179.0):
        right, left = texts([degrees, -degrees], [0.0, 0.0], NUMERIC)
        numbers = [int(text.split("azimuth ")[1].split(",")[0]) for text in (right, left)]
        assert sum(numbers) % 360 == 0


def test_empty_words_leave_no_gap():
    config = ViewPromptConfig(template="{prompt}, {elevation}, {azimuth} view")
    assert view_prompts("a cat", config)[0] == "a cat, front view"


def test_prompt_with_braces_is_taken_literally():
    assert view_prompts("a {cat}", ViewPromptConfig())[0] == "a {cat}, front view"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "{azimuth} view"}, "must hold {prompt}"),
        ({"template": "{prompt} {angle}"}, "must use only the slots"),
        ({"template": "{prompt"}, "matching braces"),
        ({"azimuth_step_degrees": 50.0}, "divide 360"),
        ({"azimuth_widths_degrees": (90.0, 90.0, 90.0, 80.0)}, "sum to 360"),
        ({"azimuth_words": ("front",)}, "same length"),
        ({"elevation_bounds_degrees": (10.0,)}, "one entry less"),
        ({"backgrounds": {}}, "at least one"),
        ({"backgrounds": {"pink": (2.0, 0.0, 0.0)}}, r"backgrounds must lie in \[0, 1\]"),
        ({"template": "{prompt:>9}"}, "plain slots"),
        ({"template": "{prompt!r}"}, "plain slots"),
        ({"azimuth_number": "{degrees:03d}"}, "plain slots"),
        ({"azimuth_step_degrees": 1e-6}, "lie in"),
        ({"overhead_above_degrees": math.nan}, "lie in"),
        ({"elevation_bounds_degrees": (math.nan,), "elevation_words": ("a", "b")}, "lie in"),
    ],
)
def test_wrong_configuration_says_what_must_hold(change, message):
    with pytest.raises(ValueError, match=message):
        ViewPromptConfig(**change)


def test_unknown_words_name_close_known_ones():
    found = unknown_words("A red chiar and a zzyzx", ["red", "chair", "car", "table"])
    assert [word for word, _ in found] == ["chiar", "zzyzx"]
    assert "chair" in found[0][1]
    assert found[1][1] == []
    assert unknown_words("the red Chair", ["red", "chair"]) == []


WORDS = ["red", "chair", "car", "table"]


@pytest.mark.parametrize(
    "prompt", ["\N{CAT FACE}", "!!!", "- , .", "\u200b", "a", "of the", "\u6905\u5b50", "zzyzx"]
)
def test_prompt_without_one_known_word_is_said(prompt):
    notes = prompt_notes(prompt, WORDS, "mini")
    assert (
        notes[0] == f"mini has no word of the prompt {prompt!r} in its vocabulary: the asset will be random"
    )
    assert len(notes) == 1 + len(unknown_words(prompt, WORDS))


def test_known_words_beside_others_are_enough():
    assert prompt_notes("a red chair!", WORDS, "mini") == []
    assert prompt_notes("a RED chair \N{CAT FACE}", WORDS, "mini") == []
    assert prompt_notes("a red chiar", WORDS, "mini") == [
        "mini does not have the word 'chiar' in its vocabulary; similar words: chair, car"
    ]


@pytest.mark.parametrize("prompt", ["a (red:1.3) chair", "((red: .5)) (chair:2)", "a (red chair:1.1)"])
def test_weights_are_no_words_and_said_once(prompt):
    assert unknown_words(prompt, WORDS) == []
    (note,) = prompt_notes(prompt, WORDS, "mini")
    assert note.startswith("weights in the prompt: 'red")
    assert prompt_notes(prompt, (), "sdxl") == [note]


def test_numbers_are_whole_words():
    assert [word for word, _ in unknown_words("2 chairs, 1.5 m, 10,000 red", WORDS)] == [
        "2", "chairs", "1.5", "m", "10,000",
    ]  # fmt: skip
    assert unknown_words("re\u0301d", ["r\u00e9d"]) == []  # one letter, however it is written


def test_model_that_knows_most_words_is_told_nothing():
    assert prompt_notes("\N{CAT FACE}", (), "sdxl") == []
