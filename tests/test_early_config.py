"""What is refused before torch is imported: the same as later, with the same words, and nothing else."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from pgc3d.clip_rules import RULES, parse_rule
from pgc3d.clip_text import NAMES, split_rule
from pgc3d.config import Config, load_config
from pgc3d.early_config import EARLY_KEYS, STAGE_KEYS, EarlyConfig, check_early
from pgc3d.errors import ConfigError
from pgc3d.stage_config import StageConfig

WRONG = (
    "run.stps=3", "run.sed=3", "run.seed=many", "run.seed=[1]", "run=3", "run.low_memory=3", "exprt.faces=3",
    "stpes=3", "logging.log_evry=5", "models.text.nme=x", "models.text=mini", "models.text.name=3",
    "models.text.style.wieght=1", "models.text.view_prompts.azimuth_words=front", "export.placing.hight=1",
    "export.format=glbb", "view.fovy_degrees=wide", "image.border=true", "run.device=gpu", "x", "a.=1",
)  # fmt: skip
VALID = (
    "run.steps=3", "run.resolution=[64]", "steps=3", "optimizer.lr=x", "stages.main.stps=3", "stages=3",
    "objectives.color.guidance.scale=3", "run.seed=3", "models.other.name=sdxl", "export.placing.unit=cm",
    "models.text.view_prompts.azimuth_step_degrees=30", "models.text.view_prompts=null", "run.seed=-1",
)  # fmt: skip


def told(call, *arguments, **more):
    with pytest.raises(ConfigError) as error:
        call(*arguments, **more)
    return str(error.value)


@pytest.mark.parametrize("override", WRONG)
def test_an_early_error_has_the_text_of_the_late_one(override):
    assert told(check_early, [], [override]) == told(load_config, overrides=[override])


@pytest.mark.parametrize(
    "text", ["run: {sed: 3}", "run: {seed: [", "- 1", "export: 3", "exprt: {}", "run: null"]
)
def test_an_early_error_in_a_file_has_the_text_of_the_late_one(text, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert told(check_early, [path], []) == told(load_config, [path])


def test_what_other_layers_or_stages_decide_is_left_for_later():
    check_early([], VALID)


def test_the_early_settings_are_those_of_a_run_without_its_stages():
    early, every = get_type_hints(EarlyConfig), get_type_hints(Config)
    assert early == {name: kind for name, kind in every.items() if name != "stages"}
    assert set(EARLY_KEYS) == set(early)
    assert set(STAGE_KEYS) <= {item.name for item in fields(StageConfig)}


def test_the_names_of_rules_are_those_that_there_are():
    assert tuple(RULES) == NAMES


@pytest.mark.parametrize("text", ["pixle", "none=1", "pngd=x", "", "0.1.2"])
def test_a_rule_is_refused_early_with_the_same_text(text):
    assert told(split_rule, text) == told(parse_rule, text) == told(check_early, [], [], rule=text)


@pytest.mark.parametrize("text", ["none", "0.1", ".5", "pngd=0.3", "parameter", "adaptive=0.9"])
def test_a_rule_that_is_right_is_kept(text):
    check_early([], [], rule=text)
    parse_rule(text)
