"""The pipelines of the literature as presets: choosing one, its miniature, and clipping as a switch."""

import pytest

from pgc3d.clip_rules import parse_rule
from pgc3d.config import PRESETS, load_config
from pgc3d.errors import ConfigError
from pgc3d.pgc import NoClip, PixelClip
from pgc3d.pipelines import pipelines
from pgc3d.presets import IMAGE, TEXT, TEXTURE, configure

ALL = [(command, pipeline) for command in (TEXT, IMAGE) for pipeline in pipelines(command.name)]
STAGED = [(command, pipeline) for command, pipeline in ALL if pipeline.files]


def name_of(value):
    return getattr(value, "name", None)


def chosen(command, pipeline, **options):
    prompted = "magic123" in pipeline
    return configure(command, guidance="mini", pipeline=pipeline, prompted=prompted, **options)[0]


def clips(config):
    """Of the objectives with a diffusion model, and of the others."""
    objectives = [found for stage in config.stages.values() for found in stage.objectives.values()]
    own = [found.clip for found in objectives if found.guidance.requires().models]
    return own, [found.clip for found in objectives if not found.guidance.requires().models]


@pytest.mark.parametrize(("command", "pipeline"), ALL, ids=name_of)
def test_a_pipeline_runs_with_the_bundled_prior_with_and_without_clipping(command, pipeline):
    clipped, plain = (chosen(command, pipeline.name, clip=clip) for clip in (None, NoClip()))
    assert {model.name for model in clipped.models.values() if model.name} == {"mini"}
    assert not any(clip == NoClip() for clip in clips(clipped)[0])
    assert all(clip == NoClip() for clip in clips(plain)[0])
    assert clips(plain)[1] == clips(clipped)[1]


@pytest.mark.parametrize(("command", "pipeline"), STAGED, ids=name_of)
def test_a_miniature_has_the_stages_of_its_pipeline(command, pipeline):
    """The same representations, guidances and starts; only sizes, steps and scales differ."""
    full, mini = load_config(pipeline.files), load_config([*pipeline.files, *pipeline.mini])
    assert list(full.stages) == list(mini.stages)
    for name, stage in full.stages.items():
        small = mini.stages[name]
        assert (small.start, small.representation.kind) == (stage.start, stage.representation.kind)
        assert small.objectives.keys() == stage.objectives.keys()
        for key, objective in stage.objectives.items():
            found = small.objectives[key]
            assert (found.guidance.kind, found.target) == (objective.guidance.kind, objective.target)
        assert small.steps < stage.steps
        assert max(small.resolution) <= 256


def test_every_file_of_a_pipeline_is_listed():
    files = {path for _, pipeline in STAGED for path in (*pipeline.files, *pipeline.mini)}
    assert files == set(PRESETS.glob("pipeline-*.yaml"))
    assert all(pipeline.summary.endswith((".", "--prompt.")) for _, pipeline in ALL)


def test_the_one_stage_pipeline_is_the_default():
    for command in (TEXT, IMAGE):
        assert chosen(command, "dmtet") == configure(command, guidance="mini")[0]


def test_a_rule_sets_the_clip_of_every_stage():
    own, _ = clips(chosen(TEXT, "magic3d", clip=parse_rule("0.3")))
    assert own == [PixelClip(threshold=0.3)] * 2


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (TEXT, {"pipeline": "magic3"}, "--pipeline must be one of .*; did you mean 'magic3d'"),
        (TEXT, {"pipeline": "zero123"}, "--pipeline must be one of dmtet, dreamfusion"),
        (TEXTURE, {"pipeline": "magic3d"}, "--pipeline must go with text or image, got 'magic3d'"),
        (TEXT, {"pipeline": "magic3d", "quality": "high"}, "--quality must go without --pipeline magic3d"),
        (IMAGE, {"pipeline": "zero123", "prompted": True}, "--prompt must go with a pipeline that uses it"),
        (IMAGE, {"pipeline": "magic123"}, "--pipeline magic123 must have a prompt"),
    ],
)
def test_what_does_not_fit_is_refused(command, options, message):
    with pytest.raises(ConfigError, match=message):
        configure(command, guidance="mini", **options)


def test_the_list_names_every_pipeline(capsys):
    from pgc3d.cli.app import main

    with pytest.raises(SystemExit) as ended:
        main(["config", "list"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(pipeline.name in printed and pipeline.summary in printed for _, pipeline in ALL)
