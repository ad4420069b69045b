"""The comparison of pipelines, at a tiny size."""

import json
import sys

import numpy as np
import pytest
import torch
from tiny import ROOT, write_tiny_sdxl

pytestmark = pytest.mark.scripts
TINY = ("--model", "MODEL", "--prompt", "a red chair", "--seeds", "1", "--steps", "2", "--samples", "2",
        "--sampling-steps", "2", "--device", "cpu", "--arms", "dmtet,dmtet+none")  # fmt: skip
SMALL = (
    "run.resolution=[32]", "run.resolution_until=[]", "representation.resolution=12",
    "objectives.color.guidance.resolution=32", "objectives.color.batch=1", "export.texture_size=64",
    "logging.preview_every=0",
)  # fmt: skip


@pytest.fixture
def scripts(monkeypatch):
    """Import by name, as the scripts do among each other."""
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")


def call(monkeypatch, *arguments):
    import compare_pipelines

    monkeypatch.setattr(sys, "argv", ["compare_pipelines.py", *map(str, arguments)])
    compare_pipelines.main()


def test_two_arms_are_run_measured_and_compared_once(scripts, folder, tmp_path, monkeypatch, capsys):
    options = [folder if word == "MODEL" else word for word in TINY]
    options += [word for item in SMALL for word in ("--set", item)]
    call(monkeypatch, tmp_path, *options)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["rule"], line["error"]) for line in lines] == [("dmtet", ""), ("dmtet+none", "")]
    names = {"r_precision", "seconds", "components", "handles", "voids", "silhouette_iou", "silhouette_level"}
    assert all(names <= line["metrics"].keys() for line in lines)
    table = (tmp_path / "summary.md").read_text()
    assert "## silhouette_iou (higher is better)" in table
    assert "minus dmtet" in table
    assert (tmp_path / "sheets" / "a-red-chair.png").exists()

    capsys.readouterr()
    call(monkeypatch, tmp_path, *options)
    assert capsys.readouterr().out.startswith("0 runs to do, 2 lines are there already")
    with pytest.raises(SystemExit, match="use another OUT"):
        call(monkeypatch, tmp_path, *options, "--set", "objectives.color.weight=2")
    call(monkeypatch, tmp_path, "--summary", "--arms", "dmtet,dmtet+none")
    assert (tmp_path / "summary.md").read_text() == table


def test_the_priors_images_have_a_background_that_the_prompt_does_not_name(scripts, tmp_path, monkeypatch):
    import compare_pipelines
    import sample_images
    from sample_images import load_model

    loaded, seen = load_model("mini", torch.device("cpu")), []

    def encode(folder, texts, *, device):
        seen.extend(texts)
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_images, "encode_prompts", encode)
    for prompt in ("a horse", "a blue chair"):
        with pytest.raises(KeyboardInterrupt):
            compare_pipelines.draw_silhouettes(prompt, loaded, compare_pipelines.Settings(tmp_path))
    texts = np.array([text for text in seen if text])
    assert all("blue background" in text for text in texts[:6])
    assert all("white background" in text for text in texts[6:])
    assert len(set(texts[:6])) == 6
