"""The fast quality of texture, and initial views on the command line."""

from pathlib import Path

import pytest

from pgc3d.cli.refine_options import RefineOptions
from pgc3d.errors import ConfigError, InputError
from pgc3d.presets import IMAGE, TEXT, TEXTURE, configure


def images(config):
    """That the model evaluates in a run."""
    stage = config.last
    return stage.steps * sum(objective.batch for objective in stage.objectives.values())


@pytest.mark.parametrize("guidance", ["mini", "sd", "sdxl"])
def test_fast_evaluates_fewer_images_than_every_other_quality_of_full_size(guidance):
    made = {
        quality: configure(TEXTURE, guidance=guidance, quality=quality)[0]
        for quality in ("fast", "standard", "high")
    }
    assert images(made["fast"]) < images(made["standard"]) < images(made["high"])
    assert made["fast"].last.resolution == made["standard"].last.resolution
    assert made["fast"].export == made["standard"].export


def test_fast_starts_from_views_where_no_texture_is_kept_and_no_download_is_needed():
    fast = {"guidance": "mini", "quality": "fast"}
    started = configure(TEXTURE, **fast)[0]
    explicit = configure(TEXTURE, **fast, sync=True)[0]
    assert started == explicit
    assert started.last.init.controls["depth"].model == "mini-depth"
    for without in (configure(TEXTURE, **fast, refine=True)[0], configure(TEXTURE, **fast, sync=False)[0]):
        assert without.last.init is None
        assert images(without) == 4 * images(started)
    for guidance in ("sd", "sdxl"):
        assert configure(TEXTURE, guidance=guidance, quality="fast")[0].last.init is None


def test_initial_views_have_the_negative_prompt_of_the_objectives():
    every = {"guidance": {"negative_prompt": "rust"}}
    for sync in (True, False):
        last = configure(TEXTURE, guidance="mini", sync=sync, every_objective=every)[0].last
        assert last.objectives["color"].guidance.negative_prompt == "rust"
        assert (last.init.negative_prompt if sync else last.init) == ("rust" if sync else None)


@pytest.mark.parametrize(("sync", "own", "other"), [(None, 20, 80), (False, 80, 20)])
def test_a_line_says_that_a_file_has_other_steps_than_fast(tmp_path, sync, own, other):
    file = tmp_path / "own.yaml"
    for steps, lines in ((own, 0), (other, 1)):
        file.write_text(f"run: {{steps: {steps}}}\n")
        _, notes = configure(TEXTURE, guidance="mini", quality="fast", sync=sync, files=[file])
        assert len([note for note in notes if "run.steps stays" in note]) == lines


@pytest.mark.parametrize("command", [TEXT, IMAGE])
def test_fast_is_of_texture_alone(command):
    with pytest.raises(ConfigError, match=f"must go with pgc3d texture, got pgc3d {command.name}; use draft"):
        configure(command, guidance="mini", quality="fast")


@pytest.mark.parametrize("guidance", ["mini", "sd", "sdxl"])
def test_initial_views_change_nothing_else(guidance):
    plain, _ = configure(TEXTURE, guidance=guidance)
    with_views, _ = configure(TEXTURE, guidance=guidance, sync=True)
    assert plain.last.init is None
    assert with_views.last.init.controls["depth"].condition == "depth"
    without, _ = configure(TEXTURE, guidance=guidance, sync=True, overrides=["init=null"])
    assert without == plain


def test_sync_is_no_texture_and_a_file_of_that_name_is_one():
    sync, file = RefineOptions(init=Path("sync")), RefineOptions(init=Path("folder/sync"))
    assert (sync.sync, sync.texture, sync.starts) == (True, None, False)
    assert (file.sync, file.texture, file.starts) == (False, Path("folder/sync"), True)
    assert RefineOptions(init=Path("sync"), strength=0.5).guidance()["t_max"][1] < 0.5


@pytest.mark.parametrize(
    ("given", "views"),
    [
        ({"init": Path("sync")}, True),
        ({}, None),
        ({"only": ("Wheel",)}, None),
        ({"refine": True}, False),
        ({"init": Path("image.png")}, False),
        ({"mask": Path("mask.png")}, False),
    ],
)
def test_the_quality_decides_on_views_where_no_texture_is_kept(given, views):
    assert RefineOptions(**given).initial_views is views


@pytest.mark.parametrize("other", [{"refine": True}, {"mask": Path("mask.png")}])
def test_sync_does_not_go_with_what_starts_from_a_texture(other):
    with pytest.raises(InputError, match="--init sync must go without --refine and --mask"):
        RefineOptions(init=Path("sync"), **other)
