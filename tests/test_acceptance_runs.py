"""The acceptance test from end to end, with random miniatures."""

import json
from zipfile import ZipFile

import pytest
from browser import CHROMIUM, Browser
from tiny import ROOT

from pgc3d import pipeline
from pgc3d.signals import StopFlag

pytestmark = pytest.mark.scripts
CHOSEN = (
    "machine", "gradients-sd", "gradients-zero123", "texture-sdxl-depth", "image-stable-zero123",
    "refine-sdxl", "sync-sdxl", "clip-none", "clip-pixel", "step-sd", "text-sd",
)  # fmt: skip
NEEDED = {"finite", "skipped_steps", "export_psnr", "coverage_least", "silhouette_iou", "cosine_prediction"}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Import by name, as the scripts do among each other."""
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a test that was interrupted in its third part and called again, and both exit codes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        import acceptance

        out, begun = tmp_path_factory.mktemp("acceptance") / "out", []
        call = ["--tiny", "--out", str(out), "--device", "cpu", "--only", *CHOSEN]

        def launch(part, trial, limit):
            begun.append(part.name)
            if len(begun) == 3:
                raise KeyboardInterrupt
            acceptance.execute(part, trial)

        codes = [acceptance.main(call, launch), acceptance.main(call, launch)]
    return out, codes, begun


def test_a_second_call_does_what_the_first_left(finished):
    from acceptance_parts import choose

    _, codes, begun = finished
    names = [part.name for part in choose(CHOSEN)]
    assert codes == [0, 0]
    assert begun == [*names[:3], *names[2:]]


def test_all_needed_numbers_are_there_and_pass(finished):
    out, _, _ = finished
    summary = json.loads((out / "acceptance.json").read_text())
    assert {name for name, part in summary["parts"].items() if part["verdict"] != "not run"} == set(CHOSEN)
    checks = [check for name in CHOSEN for check in summary["parts"][name]["checks"]]
    assert {check["number"] for check in checks if check["verdict"] == "pass"} >= NEEDED
    assert not [check for check in checks if check["verdict"] == "fail" and check["needed"]]
    for check in checks:  # that only apply to other weights, or to CUDA, are measured all the same
        if not check["number"].startswith("gb_"):
            assert check["value"] is not None, check
    weights = summary["parts"]["machine"]["facts"]["weights"]
    assert {len(file["sha256"]) for model in weights.values() for file in model["files"].values()} == {64}
    assert "unet/diffusion_pytorch_model.safetensors" in weights["sdxl"]["files"]
    assert weights["sd-depth"]["files"]


def test_one_file_holds_the_images_and_records(finished):
    out, _, _ = finished
    with ZipFile(out / "acceptance.zip") as archive:
        names = set(archive.namelist())
    assert {"acceptance.json", "acceptance.html", "parts/clip-pixel/run/metrics.jsonl"} <= names
    assert len([name for name in names if name.endswith("views.png")]) == len(CHOSEN) - 3


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_loads_nothing(finished, tmp_path):
    out, _, _ = finished
    with Browser(tmp_path / "profile", size=(1200, 900)) as browser:
        browser.open(out / "acceptance.html")
        assert browser.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
        assert browser.evaluate("document.querySelectorAll('h2').length") >= 8
        assert not [request for request in browser.requests if not request.startswith(("file:", "data:"))]
        assert browser.console == []


def test_a_run_that_was_stopped_is_resumed(tmp_path):
    from acceptance_runs import RunWork, Trial
    from acceptance_weights import Weights, write_tiny

    write_tiny(tmp_path / "models")
    trial = Trial(Weights("tiny", tmp_path / "models", random=True), tmp_path / "out", "cpu")
    work, folder, stop = RunWork("text", "sd", 2), tmp_path / "part", StopFlag()

    def stop_early(event):
        if event.report is not None:
            stop.signal = 2

    result = pipeline.generate(
        work.task(trial), out=folder / "run", config=work.config(trial), on_event=stop_early, stop=stop
    )
    assert result.stopped_by == 2
    numbers = work(trial, folder).numbers
    assert numbers["steps"] == 2
    assert numbers["export_psnr"] > 28
    assert (folder / "views.png").is_file()


@pytest.fixture
def trial(tmp_path):
    from acceptance_runs import Trial
    from acceptance_weights import Weights

    return Trial(Weights("mini"), tmp_path, "cpu")


def test_a_process_that_ends_early_is_recorded(trial):
    from acceptance import in_a_process, read_result
    from acceptance_parts import PARTS, Part

    words = ["--models", "mini", "--out", str(trial.out), "--device", "cpu"]
    unknown = Part("unknown", PARTS[0].work, 1.0)
    in_a_process(unknown, trial, 600.0, arguments=words)
    found = read_result(unknown, trial)
    assert found["state"] == "error"
    assert "its process ended with exit code 1; see" in found["reason"]
    in_a_process(PARTS[0], trial, 0.1, arguments=words)
    assert read_result(PARTS[0], trial)["reason"] == "its time was used up; call again to go on"
