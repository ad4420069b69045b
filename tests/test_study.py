"""The scripts behind the clipping study, at tiny sizes."""

import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ROOT, write_tiny_sdxl

from pgc3d.diffusion.models import load_latent_diffusion

pytestmark = pytest.mark.scripts


@pytest.fixture
def scripts(monkeypatch):
    """Import by name, as the scripts do among each other."""
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight smooth pictures of different shapes, one with alpha."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(8):
        size = (4 + number, 6)
        small = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        picture = small.resize((96, 64 + 8 * number), Image.Resampling.BICUBIC)
        if number == 0:
            picture.putalpha(0)
        picture.save(root / f"{number}.png")
    return root


def run_main(module, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    module.main()


def lines_of(table):
    """Made-up results: rule -> {(object, seed): value}."""
    return [
        {"kind": "text", "task": task, "rule": rule, "seed": seed, "metrics": {"speckle": value}, "error": ""}
        for rule, values in table.items()
        for (task, seed), value in values.items()
    ]


KEYS = [(task, seed) for task in ("a", "b", "c", "d") for seed in (0, 1)]


def test_paired_difference_is_right_on_made_up_numbers(scripts):
    from study_summary import differences, spread, summarize

    base = {key: 10.0 * number for number, key in enumerate(KEYS)}  # objects differ far more than rules
    lines = lines_of({"none": base, "pixel=0.1": {key: value - 2.0 for key, value in base.items()}})
    paired = differences(lines, "pixel=0.1", "none", "speckle")
    assert set(paired.values()) == {-2.0}
    assert spread(paired) == (-2.0, -2.0, -2.0)
    row = next(line for line in summarize(lines, references=["none"]).splitlines() if "pixel=0.1" in line)
    assert "-2 [-2, -2] win" in row
    assert "33 [" in row  # the mean of 0, 10, ..., 70 less 2


def test_objects_count_the_same_whatever_their_seeds(scripts):
    from study_summary import spread

    mean, low, high = spread({("a", 0): 0.0, ("a", 1): 0.0, ("a", 2): 0.0, ("b", 0): 1.0})
    assert mean == 0.5
    assert (low, high) == (0.0, 1.0)


def test_differences_that_cancel_are_no_difference(scripts):
    from study_summary import spread

    assert spread({("a", 0): 0.1, ("b", 0): 0.2, ("c", 0): -0.3})[0] == 0.0


def test_rules_stand_in_the_order_of_the_study(scripts):
    from study_clipping import RULES, position

    lines = [{"rule": rule} for rule in ("pixel=0.5", *reversed(RULES))]
    assert [line["rule"] for line in sorted(lines, key=position)] == [*RULES, "pixel=0.5"]


def test_only_pairs_are_compared_and_failures_are_counted(scripts):
    from study_summary import differences, summarize

    lines = lines_of({"none": {("a", 0): 1.0, ("b", 0): 5.0}, "0.3": {("a", 0): 4.0}})
    lines.append({"kind": "text", "task": "b", "rule": "0.3", "seed": 0, "metrics": {}, "error": "diverged"})
    assert differences(lines, "0.3", "none", "speckle") == {("a", 0): 3.0}
    row = next(line for line in summarize(lines, references=["none"]).splitlines() if "| 0.3 |" in line)
    assert row.endswith("| 1 | 1 |")
    assert "loss" in row


@pytest.mark.parametrize(
    ("low", "high", "metric", "expected"),
    [
        (-1.0, 1.0, "speckle", "tie"),
        (0.0, 1.0, "speckle", "tie"),
        (-2.0, -1.0, "speckle", "win"),
        (1.0, 2.0, "speckle", "loss"),
        (1.0, 2.0, "psnr", "win"),
        (-2.0, -1.0, "shared_mask_iou", "loss"),
        (-2.0, -1.0, "shared_chamfer", "win"),
        (1.0, 2.0, "clipped_fraction", "differs"),
    ],
)
def test_verdicts(scripts, low, high, metric, expected):
    from study_summary import verdict

    assert verdict(low, high, metric) == expected


def test_a_study_goes_on_where_it_stopped(scripts, tmp_path):
    from study_clipping import Job, make_jobs, read_results, work_off

    jobs = make_jobs("text", ["a horse", "a car"], ["none", "pixel=0.1"], 2)
    assert len(set(jobs)) == 8
    assert len({job.slug for job in jobs}) == 8
    results, worked = tmp_path / "results.jsonl", []

    def work(job: Job):
        if len(worked) == 3:
            raise KeyboardInterrupt
        worked.append(job)
        return asdict(job) | {"metrics": {"speckle": 1.0}, "error": ""}

    with pytest.raises(KeyboardInterrupt):
        work_off(jobs, results, work, processes=1)
    with results.open("a") as stream:
        stream.write('{"kind": "text", "ta')  # what a crash leaves
    rest = []
    work_off(jobs, results, lambda job: rest.append(job) or work_line(job), processes=1)
    assert worked + rest == jobs
    work_off(jobs, results, pytest.fail, processes=1)
    assert len(read_results(results)) == 8


def test_a_study_is_not_continued_with_other_settings(scripts, tmp_path):
    from study_clipping import require_same_settings
    from study_jobs import Settings, fingerprint, make_jobs

    draft, standard = (Settings(out=tmp_path, quality=quality) for quality in ("draft", "standard"))
    jobs, results = make_jobs("text", ["a horse", "a car"], ["none", "pixel=0.1"], 2), tmp_path / "r.jsonl"
    assert len({fingerprint(job, draft) for job in jobs if job.task == "a horse"}) == 1
    line = {"kind": "text", "rule": "none", "seed": 0}
    for extra in ({"task": "a horse"}, {"task": "a ship", "settings": "?"}):
        with results.open("a") as stream:
            stream.write(json.dumps(line | extra) + "\n")
    require_same_settings(jobs, results, draft)  # nothing is known of these
    with results.open("a") as stream:
        stream.write(json.dumps(line | {"task": "a car", "settings": fingerprint(jobs[-1], draft)}) + "\n")
    require_same_settings(jobs, results, draft)
    with pytest.raises(SystemExit, match="'a car' was made with another quality"):
        require_same_settings(jobs, results, standard)


def work_line(job):
    return asdict(job) | {"metrics": {}, "error": ""}


def test_processes_share_the_jobs(scripts, tmp_path, monkeypatch):
    from study_clipping import make_jobs, read_results, work_off

    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'scripts'}:{ROOT / 'tests'}:{ROOT}")
    jobs = make_jobs("text", ["a horse"], ["none", "0.1", "0.3"], 1)
    work_off(jobs, tmp_path / "results.jsonl", work_line, processes=2)
    assert {line["rule"] for line in read_results(tmp_path / "results.jsonl")} == {"none", "0.1", "0.3"}


def test_rules_become_settings(scripts, tmp_path):
    from study_clipping import RULES
    from study_jobs import Job, Settings, job_config

    settings = Settings(out=tmp_path, device="cpu", steps=3)
    configs = {rule: job_config(Job("text", "a horse", rule, 5), settings) for rule in RULES}
    assert len({str(config) for config in configs.values()}) == len(RULES)
    linear, vae = configs["none+linear"], configs["pixel=0.1+vae"]
    assert linear.last.objectives["color"].guidance.linear_encoder == str(tmp_path / "linear_encoder.json")
    assert vae.models["text"].vae == str(tmp_path / "vae")
    assert vae.last.objectives["color"].clip.threshold == 0.1
    assert {config.run.seed for config in configs.values()} == {5}
    # The rest is the preset's.
    assert {config.last.objectives["color"].guidance.guidance_scale for config in configs.values()} == {25.0}


def test_a_run_of_the_study_is_measured(scripts, folder, tmp_path):
    from study_clipping import write_sheets
    from study_jobs import Job, Settings, run_job

    (tmp_path / "views").mkdir()
    overrides = (
        "run.resolution=[32]", "run.resolution_until=[]",
        "representation.resolution=16", "objectives.color.batch=1", "export.texture_size=256",
        "export.faces=0", "logging.preview_every=0",
    )  # fmt: skip
    settings = Settings(
        out=tmp_path, guidance="auto", model=str(folder), device="cpu", steps=2, overrides=overrides
    )
    job = Job("text", "a red chair", "pixel=0.001", 0)
    line = run_job(job, settings)
    assert line["error"] == ""
    assert line["metrics"]["clipped_fraction"] > 0
    assert {"speckle", "saturated_fraction", "seconds", "gradient_p99"} <= set(line["metrics"])
    write_sheets(tmp_path, [line])
    with Image.open(tmp_path / "sheets" / "a-red-chair.png") as sheet:
        assert sheet.size[0] == 6 * 256
    assert not list(tmp_path.glob("tmp*"))


def test_finetuning_lowers_the_gradient_and_keeps_the_latents(scripts, folder):
    from finetune_vae_encoder import compare, finetune

    vae = load_latent_diffusion(folder).vae
    before = copy.deepcopy(vae)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((6, 3, 8, 8), generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").permute(0, 2, 3, 1)
    steps = finetune(
        vae, pictures, penalty=0.1, learning_rate=3e-4, batch=4, generator=generator,
        go_on=lambda step: step < 40,
    )  # fmt: skip
    assert steps == 40
    report = compare(before, vae, pictures, torch.Generator().manual_seed(1))
    assert report["after"]["p50"] < 0.9 * report["before"]["p50"]
    assert report["latent_r2"] > 0.9
    for name, parameter in vae.named_parameters():
        assert not parameter.requires_grad, name
    for name, tensor in vae.decoder.state_dict().items():
        assert torch.equal(tensor, before.decoder.state_dict()[name]), name


def test_a_finetuned_vae_and_a_linear_encoder_can_be_used(scripts, folder, photos, tmp_path, monkeypatch):
    """Both commands on a folder of pictures; what they write loads where the configuration names it."""
    import finetune_vae_encoder
    import fit_linear_encoder

    from pgc3d.diffusion.linear_encoder import read_linear_encoder

    shared = ["--model", folder, "--pictures", photos, "--size", 64, "--device", "cpu"]
    out = tmp_path / "vae"
    monkeypatch.setattr(finetune_vae_encoder, "finetune", short(finetune_vae_encoder.finetune))
    run_main(finetune_vae_encoder, [out, *shared, "--minutes", 1], monkeypatch)
    model = load_latent_diffusion(folder, vae=out)
    assert json.loads((out / "finetuning.json").read_text())["steps"] == 1
    path = tmp_path / "linear.json"
    run_main(fit_linear_encoder, [path, *shared], monkeypatch)
    content = json.loads(path.read_text())
    assert content["pictures"] == 8
    assert len(content["r2"]) == 4
    assert read_linear_encoder(path, model).matrix.shape == (3, 4)


def short(finetune):
    def once(*arguments, **options):
        return finetune(*arguments, **(options | {"go_on": lambda step: step < 1}))

    return once


def test_samples_come_from_the_model(scripts, folder):
    from sample_images import draw_images, load_model

    loaded = load_model(str(folder), torch.device("cpu"))
    pictures = draw_images(loaded, 3, size=64, steps=2, batch=2)
    assert pictures.shape == (3, 64, 64, 3)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert torch.equal(pictures, draw_images(loaded, 3, size=64, steps=2, batch=2))


def test_ddim_returns_to_the_picture_that_an_exact_model_knows(scripts, folder):
    """With the noise of one known picture as its answer, every estimate is that picture."""
    from sample_images import encode_views, load_model, sample

    loaded = load_model(str(folder), torch.device("cpu"))
    truth = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))

    class Exact:
        device, alphas_cumprod = loaded.model.device, loaded.model.alphas_cumprod
        latent_shape, time_ids = loaded.model.latent_shape, loaded.model.time_ids

        def predict(self, noisy, timesteps, **_):
            signal = self.alphas_cumprod[timesteps][:, None, None, None]
            noise = (noisy - signal.sqrt() * truth) / (1 - signal).sqrt()
            return noise, noise

    generator = torch.Generator().manual_seed(1)
    _, positive, negative = encode_views(loaded, ["a horse"], generator)
    exact = type(loaded)(loaded.folder, Exact())
    steps = list(sample(exact, positive, negative, size=64, steps=5, guidance_scale=5.0, generator=generator))
    assert [step.timestep for step in steps] == sorted((step.timestep for step in steps), reverse=True)
    for step in steps:
        torch.testing.assert_close(step.clean, truth, rtol=1e-3, atol=1e-3)


def test_places_of_a_disc(scripts):
    from measure_residuals import regions

    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((x - 16) ** 2 + (y - 16) ** 2 < 81).float()[None, ..., None]
    image = disc * torch.tensor([0.8, 0.1, 0.1]) + (1 - disc)
    places = regions(image)
    assert torch.stack(list(places.values())).sum(0).eq(1).all()
    assert places["object"][0, 16, 16]
    assert places["background"][0, 2, 2]
    assert places["edges"][0, 16, 7]
    assert not (places["object"] & (disc[..., 0] == 0)).any()


def test_dark_corners_say_nothing_about_the_background(scripts):
    """A decoder's pictures have them."""
    from measure_residuals import regions

    image = torch.ones(1, 32, 32, 3)
    image[:, [0, 0, -1, -1], [0, -1, 0, -1]] = 0.9
    assert regions(image)["background"][:, 1:-1, 1:-1].all()


def test_residuals_are_measured(scripts, folder, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import measure_residuals

    monkeypatch.setattr(measure_residuals, "LEVELS", (0.1, 0.5))
    run_main(
        measure_residuals,
        [tmp_path, "--model", folder, "--prompts", 2, "--steps", 3, "--size", 64, "--device", "cpu"],
        monkeypatch,
    )
    content = json.loads((tmp_path / "residuals.json").read_text())
    shares = content["gradients"]["finished"]["all"]["beyond"]
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert content["residuals"]["clean"]["p50"] <= content["residuals"]["clean"]["max"] <= 1
    assert (tmp_path / "residuals.png").stat().st_size > 0


def test_the_summary_is_drawn(scripts, tmp_path):
    pytest.importorskip("matplotlib")
    from study_summary import plot_summary

    plot_summary(tmp_path / "summary.png", lines_of({"none": dict.fromkeys(KEYS, 1.0)}))
    assert Path(tmp_path / "summary.png").stat().st_size > 0
