"""The clipping study on pictures with ground truth, at tiny sizes."""

import json
import sys
from dataclasses import replace

import pytest
from PIL import Image
from tiny import ROOT, write_tiny_zero123

from pgc3d.evaluation.items import read_items
from pgc3d.evaluation.procedural import write_procedural_set
from pgc3d.evaluation.protocol import Protocol
from pgc3d.pgc import PixelClip
from pgc3d.rendering.cpu import CpuRasterizer

pytestmark = pytest.mark.scripts

SMALL = Protocol(views=2, resolution=64, points=512, surface_views=4, grid=16)
TINY = (
    "run.resolution=[32]", "run.resolution_until=[]", "representation.resolution=16",
    "objectives.novel.batch=1", "export.texture_size=256", "export.faces=0", "logging.preview_every=0",
)  # fmt: skip


@pytest.fixture
def scripts(monkeypatch):
    """Import by name, as the scripts do among each other."""
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_zero123(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_procedural_set(tmp_path_factory.mktemp("benchmark"), rasterizer=CpuRasterizer())


def test_rules_are_about_the_novel_views(scripts, tmp_path, benchmark, model):
    from study_clipping import IMAGE_RULES
    from study_jobs import Job, Settings, job_config

    settings = Settings(
        out=tmp_path, guidance="auto", model=model, device="cpu", items=tuple(read_items(benchmark))
    )
    configs = {rule: job_config(Job("image", "torus", rule, 5), settings) for rule in IMAGE_RULES}
    assert len({str(config) for config in configs.values()}) == len(IMAGE_RULES) >= 10
    assert configs["pixel=0.3"].last.objectives["novel"].clip.threshold == 0.3
    assert configs["pixel=0.1+vae"].models["image"].vae == str(tmp_path / "vae")
    for config in configs.values():
        assert config.last.objectives["reference"].clip.kind == "none"
        assert (config.run.seed, config.view.elevation_degrees) == (5, 20.0)
        assert config.models["image"].name == model


def test_a_pipelines_own_clips_are_a_rule(scripts, tmp_path, benchmark):
    from study_jobs import Job, Settings, job_config

    settings = Settings(out=tmp_path, device="cpu", pipeline="magic123", items=tuple(read_items(benchmark)))
    own, none = (job_config(Job("image", "torus", rule, 0), settings) for rule in ("own", "none"))
    assert {objective.clip.kind for objective in none.last.objectives.values()} == {"none"}
    assert "pixel" in {objective.clip.kind for objective in own.last.objectives.values()}
    assert without_clips(own) == without_clips(none)


def without_clips(config):
    """The objectives of all stages without their clips."""
    return [
        {name: replace(objective, clip=PixelClip()) for name, objective in stage.objectives.items()}
        for stage in config.stages.values()
    ]


def test_a_run_is_measured_against_the_truth_in_both_frames(scripts, tmp_path, benchmark, model):
    from study_clipping import truth_views, write_sheets
    from study_jobs import AGAINST_TRUTH, Job, Settings, measure_views, run_job

    (tmp_path / "views").mkdir()
    items = tuple(read_items(benchmark))
    settings = Settings(
        out=tmp_path, guidance="auto", model=model, device="cpu", steps=2,
        overrides=(*TINY, "view.fovy_degrees=40.0"),  # the camera of the items' frame
        items=items, protocol=SMALL,
    )  # fmt: skip
    line = run_job(Job("image", "box", "pixel=0.00001", 0), settings)
    assert line["error"] == ""
    metrics = line["metrics"]
    assert metrics["clipped_fraction"] > 0
    assert {"speckle", "seconds", "gradient_p99", *AGAINST_TRUTH} <= set(metrics)
    assert {f"shared_{name}" for name in AGAINST_TRUTH} <= set(metrics)
    # The start, a ball, is neither where the box is nor as large: only the shared frame sees that.
    assert metrics["shared_chamfer"] != metrics["chamfer"]
    assert json.loads(json.dumps(line)) == line
    measure_views(items[1].truth, truth_views(tmp_path, "box"))
    write_sheets(tmp_path, [line])
    with Image.open(tmp_path / "sheets" / "image-box.png") as sheet:
        assert sheet.size[0] == 6 * 256
        assert sheet.size[1] >= 2 * 256  # the truth, the result, and their labels


def run_main(monkeypatch, *arguments):
    import study_clipping

    monkeypatch.setattr(sys, "argv", ["study_clipping.py", *map(str, arguments)])
    study_clipping.main()


def made_up(job, *_, **__):
    return {**vars(job), "metrics": {"psnr": 20.0 + len(job.rule), "speckle": 1.0}, "error": ""}


def test_pictures_and_prompts_are_summed_up_apart(scripts, tmp_path, benchmark, model, monkeypatch):
    pytest.importorskip("matplotlib")
    import study_clipping

    monkeypatch.setattr(study_clipping, "run_job", made_up)
    shared = ["--rules", "none,pixel=0.1", "--seeds", 2, "--device", "cpu"]
    run_main(
        monkeypatch,
        tmp_path,
        "--items",
        benchmark,
        "--item",
        "box",
        "--item",
        "torus",
        "--model",
        model,
        *shared,
    )
    run_main(monkeypatch, tmp_path, "--prompt", "a horse", *shared)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [(json.loads(line)["kind"], json.loads(line)["task"]) for line in lines] == [
        *[("image", name) for _ in range(2) for name in ("box", "box", "torus", "torus")],
        *[("text", "a horse")] * 4,
    ]
    image, text = (tmp_path / "summary.md").read_text().split("# Tasks of kind text")
    assert image.startswith("# Tasks of kind image\n\n| rule | psnr | minus none | speckle | minus none |\n")
    assert "| pixel=0.1 | 29 [29, 29] | +5 [+5, +5] win | 1 [1, 1] | +0 [+0, +0] tie |" in image
    assert "2 objects, 2 seeds, 8 runs" in image
    assert "| pixel=0.1 | 29 [29, 29] | +5 [+5, +5] win | - | 4 | 0 |" in image
    assert "1 objects, 2 seeds, 4 runs" in text
    assert (tmp_path / "summary.png").stat().st_size > 0
    assert (tmp_path / "views" / "image-box-truth-0.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--item", "cup"], "got no cup"),
        (["--rules", "none+linear"], r"for text \+linear"),
        (["--rules", "none+vae"], "must have a fine-tuned VAE of the novel-view model"),
        (["--guidance", "sdxl", "--model", ""], "error: "),
        (["--model", "./none"], "error: .*got ./none"),
    ],
    ids=["item", "rule", "vae", "guidance", "model"],
)
def test_mistakes_are_found_before_anything_runs(
    scripts, tmp_path, benchmark, model, monkeypatch, arguments, message
):
    with pytest.raises(SystemExit, match=message):
        run_main(monkeypatch, tmp_path, "--items", benchmark, "--model", model, "--device", "cpu", *arguments)
    assert not (tmp_path / "results.jsonl").exists()
