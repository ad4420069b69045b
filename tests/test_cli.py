"""The command line as a user meets it: every mistake is one line on stderr and an exit code."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from tiny import write_tiny_controlnet, write_tiny_sd, write_tiny_sdxl

from pgc3d.cli.app import main
from pgc3d.records import seal

TINY = [
    "--set", "representation.resolution=16",
    "--set", "representation.redistance_every=3",
    "--set", "objectives.color.batch=1",
    "--set", "logging.log_every=2",
    "--set", "logging.preview_every=3",
    "--set", "logging.preview_resolution=32",
    "--steps", "8", "--resolution", "32", "--texture-size", "64", "--faces", "200",
]  # fmt: skip


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def sd_checkpoint(tmp_path_factory):
    return write_tiny_sd(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command line in an empty folder; gives the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


ERRORS = {
    "unknown option": (["text", "x", "--guidnce", "mini"], 2, "No such option: --guidnce"),
    "nearest option": (["text", "x", "--guidnce", "mini"], 2, "--guidance"),
    "unknown command": (["txt", "x"], 2, "No such command 'txt'. Did you mean 'text'"),
    "no prompt": (["text"], 2, "Missing argument 'PROMPT'."),
    "not a number": (["text", "x", "--steps", "many"], 2, "Invalid value for '--steps'"),
    "unknown guidance": (["text", "x", "--guidance", "midi"], 2, "Invalid value for '--guidance'"),
    "unknown key": (
        ["text", "x", "--set", "run.stepz=3"],
        2,
        "error: --set: run.stepz: Key 'stepz' not in 'RunConfig'. Did you mean: 'steps'?",
    ),
    "wrong value": (
        ["text", "x", "--steps", "0"],
        2,
        "error: stages.main: steps must lie in [1, 10000000], got 0",
    ),
    "no such file": (["text", "x", "--config", "none.yaml"], 2, "none.yaml does not"),
    "empty prompt": (["text", "  "], 2, "error: the prompt must not be empty"),
    "model with mini": (["text", "x", "--guidance", "mini", "--model", "m"], 2, "--model must go with"),
    "no such model folder": (["text", "x", "--model", "./none"], 3, "got ./none"),
    "no such LoRA": (
        ["text", "x", "--guidance", "mini", "--lora", "none.safetensors:0.5"],
        3,
        "error: --lora must be a file, got none.safetensors, which does not exist",
    ),
    "no such ControlNet": (
        ["text", "x", "--guidance", "mini", "--set", "objectives.color.guidance.controls.a.model=./none"],
        3,
        "error: the ControlNet must be a folder, a hub id or an alias, got ./none",
    ),
    "ControlNet without a model": (
        ["text", "x", "--set", "objectives.color.guidance.controls.a.scale=0.5"],
        2,
        "error: stages.main.objectives.color.guidance.controls.a.model: Missing mandatory value",
    ),
    "no such condition": (
        ["text", "x", "--set", "objectives.color.guidance.controls.a={model: m, condition: canny}"],
        2,
        "controls.a.condition",
    ),
    "no such linear encoder": (
        ["text", "x", "--guidance", "mini", "--set", "objectives.color.guidance.linear_encoder=none"],
        2,
        "guidance.linear_encoder must be a file, got none at none",
    ),
    "evaluation that makes nothing": (
        ["eval", "none.jsonl", "--steps", "5", "--set", "run.seed=1", "--device", "cpu"],
        2,
        "error: --steps, --set must go with --run, got none",
    ),
    "seeds of nothing": (["eval", "none.jsonl", "--seeds", "2"], 2, "must go with --run"),
    "no such run": (["resume", "none"], 2, "error: none must be the folder of a run"),
    "no rules": (["ablate", "a chair", "--guidance", "mini", "--rules", ", "], 2, "name at least one rule"),
    "export of no run": (["export", "none"], 2, "error: none must be the folder of a run"),
    "export to an unknown format": (["export", ".", "--out", "a.fbx"], 2, "a folder or end in .glb,"),
    "export to two formats": (
        ["export", ".", "--out", "a.obj", "--format", "glb"],
        2,
        "error: --format must be that of --out, got glb and a.obj; remove one of them",
    ),
    "render of no run": (["render", "none"], 2, "error: none must be the folder of a run"),
    "unknown format": (["export", "none", "--format", "fbx"], 2, "Invalid value for '--format'"),
    "empty folder": (["text", "x", "--out", ""], 2, "it must not be empty"),
    "empty model": (["text", "x", "--model", ""], 2, "it must not be empty"),
    "line break in a path": (["resume", "a\nb"], 2, r"error: a\nb must be the folder of a run"),
    "long path": (["image", "x" * 300, "--guidance", "mini"], 2, "File name too long"),
    "prompt that is no text": (["text", "a \udcff"], 2, "error: the prompt must be UTF-8 text"),
    "weight out of range": (
        ["text", "a screen (16:9)"],
        2,
        "error: a weight in a prompt must lie in [0, 4], got 9 in 'a screen (16:9)'",
    ),
    "no such prompt file": (["text", "@none.txt"], 2, "must name a file that can be read, got: No such file"),
    "prompt of a resumed run": (["resume", ".", "--prompt", "x"], 2, "must not be given to resume"),
    "interpolation": (["text", "x", "--model", "${oc.env:HOME}"], 2, "must be written out"),
    "mesh without a mesh": (
        ["text", "x", "--guidance", "mini", "--out", "o", "--set", "representation.kind=textured_mesh"],
        2,
        "must have a mesh, got none; use `pgc3d texture MESH PROMPT`",
    ),
    "no such list": (["batch", "none.yaml"], 2, "error: the list must be a file, got none at none.yaml"),
    "list of another format": (["batch", "none.doc"], 2, "error: the list must be one of .yaml, .yml, .csv"),
    "wrong config file": (["config", "validate", "none.yaml"], 2, "none.yaml does not"),
}


@pytest.mark.parametrize(("arguments", "code", "line"), ERRORS.values(), ids=ERRORS)
def test_mistake_is_one_line(run, tmp_path, arguments, code, line):
    found, out, err = run(*arguments)
    lines = [text for text in err.splitlines() if not text.startswith("guidance:")]
    assert (found, out, len(lines)) == (code, "", 1), err
    assert line in lines[0]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_missing_sdxl_weights_say_how_to_get_them(run):
    code, _, err = run("text", "x", "--guidance", "sdxl")
    assert code == 3
    assert "hf download stabilityai/stable-diffusion-xl-base-1.0" in err
    assert "--guidance mini" in err


def test_broken_model_folder_names_the_file(run, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    code, _, err = run("text", "x", "--guidance", "sdxl", "--model", broken)
    assert code == 3
    assert "model_index.json" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a computer without CUDA")
def test_cuda_that_is_not_there_is_one_line(run, checkpoint):
    code, _, err = run("text", "x", "--model", checkpoint, "--device", "cuda")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: --device cuda must have a CUDA device, but")


def test_output_folder_is_never_overwritten(run, checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    code, _, err = run("text", "x", "--model", checkpoint, "--out", "mine")
    assert code == 2
    assert "must not exist or be empty" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_version(run):
    assert run("--version")[:2] == (0, "pgc3d 0.1.0\n")


def test_help_takes_less_than_half_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "pgc3d", "text", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, so that a busy computer does not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_shown_config_is_valid_input(run, tmp_path):
    code, shown, _ = run("config", "show", "--guidance", "mini", "--quality", "draft", "--seed", "7")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(shown)
    assert run("config", "validate", "shown.yaml") == (0, "shown.yaml is valid\n", "")
    assert run("config", "show", "--config", "shown.yaml")[1] == shown


def test_options_win_over_files_and_set_wins_over_options(run, tmp_path):
    (tmp_path / "my.yaml").write_text("run: {steps: 5, seed: 5, resolution: [64, 64]}\n")
    shown = run("config", "show", "--config", "my.yaml", "--steps", "6", "--set", "run.seed=7")[1]
    assert "steps: 6" in shown
    assert "seed: 7" in shown


def test_quality_changes_steps_resolution_and_texture(run):
    shown = [run("config", "show", "--quality", quality)[1] for quality in ("draft", "standard", "high")]
    assert len(set(shown)) == 3


def test_quality_beside_a_file_that_fixes_the_same_is_said(run, tmp_path):
    (tmp_path / "old.yaml").write_text(run("config", "show", "--guidance", "mini")[1])
    for quality, kept in (("draft", 3), ("high", 4)):
        code, shown, err = run("config", "show", "--config", "old.yaml", "--quality", quality)
        assert (code, shown) == (0, (tmp_path / "old.yaml").read_text())
        assert err.count("\n") == 1
        assert err.startswith(f"--quality {quality} does not override --config: run.steps, ")
        assert err.split(" stay as in ")[0].count(",") + 1 == kept
        assert "stay as in old.yaml" in err
    assert run("config", "show", "--config", "old.yaml", "--quality", "standard")[2] == ""
    assert run("config", "show", "--config", "old.yaml")[2] == ""


def test_what_an_option_or_key_takes_is_not_said_to_be_kept(run, tmp_path):
    (tmp_path / "my.yaml").write_text("models: {text: {name: mini}}\nrun: {steps: 5}\n")
    err = run("config", "show", "--config", "my.yaml", "--quality", "draft")[2]
    assert "draft does not override --config: run.steps stays as in my.yaml" in err
    for taken in (("--steps", "9"), ("--set", "run.steps=9")):
        assert run("config", "show", "--config", "my.yaml", "--quality", "draft", *taken)[2] == ""
    (tmp_path / "my.yaml").write_text("models: {text: {name: mini}}\nrun: {seed: 5}\n")
    assert run("config", "show", "--config", "my.yaml", "--quality", "draft")[2] == ""


def test_guidance_beside_a_file_for_another_model_is_said(run, tmp_path):
    (tmp_path / "old.yaml").write_text(run("config", "show", "--guidance", "mini")[1])
    for options in (("--guidance", "sd"), ("--model", "sd")):
        code, shown, err = run("config", "show", "--config", "old.yaml", *options)
        assert (code, "  name: sd\n" in shown, err.count("\n")) == (0, True, 1)
        assert err.startswith(f"{' '.join(options)} does not override --config: run.steps, ")
        assert "which is for the model mini" in err
    assert run("config", "show", "--config", "old.yaml", "--guidance", "mini")[2] == ""


def test_key_that_wins_over_an_option_is_said(run):
    code, shown, err = run("config", "show", "--guidance", "mini", "--steps", "5", "--set", "run.steps=7")
    assert (code, "    steps: 7\n" in shown) == (0, True)
    assert err == "--set run.steps overrides an option: 7 instead of 5\n"
    for key in ("steps", "stages.main.steps"):  # other names of the same
        assert run("config", "show", "--guidance", "mini", "--steps", "5", "--set", f"{key}=7")[2] == err
    assert run("config", "show", "--guidance", "mini", "--steps", "7", "--set", "run.steps=7")[2] == ""


@pytest.mark.parametrize(
    "options",
    [["--model", "mini"], ["--set", "models.text.name=mini"], ["--set", "models.text.name=zero123"]],
)
def test_model_that_does_not_go_with_the_guidance_is_refused(run, options):
    code, _, err = run("config", "show", "--guidance", "sdxl", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert "the model must" in err


def test_device_and_model_choose_the_guidance_however_they_are_given(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("pgc3d.presets.local_model", lambda name: object())
    (tmp_path / "cpu.yaml").write_text("run: {device: cpu}\n")
    for options in (["--device", "cpu"], ["--set", "run.device=cpu"], ["--config", "cpu.yaml"]):
        assert "  name: mini\n" in run("config", "show", *options)[1], options
    for options in ([], ["--config", "cpu.yaml", "--set", "run.device=cuda"]):
        assert "  name: sdxl\n" in run("config", "show", *options)[1], options
    shown = run("config", "show", "--set", "models.text.name=sd")[1]
    assert shown == run("config", "show", "--model", "sd")[1]


def test_resolution_scales_all_stages(run):
    shown = run("config", "show", "--guidance", "mini", "--resolution", "128")[1]
    assert "    resolution:\n    - 64\n    - 128\n" in shown


def test_choice_of_guidance_is_said(run):
    _, shown, err = run("config", "show", "--device", "cpu")
    assert "name: mini" in shown
    assert err.startswith("guidance: the bundled mini")


def test_model_folder_of_a_config_file_is_kept(run, tmp_path):
    (tmp_path / "my.yaml").write_text("models: {text: {name: ./folder}}\n")
    assert "name: ./folder" in run("config", "show", "--config", "my.yaml")[1]


def test_prompt_becomes_a_mesh_and_more(run, checkpoint, tmp_path):
    code, out, err = run("text", "a red chair", "--model", checkpoint, "--out", "chair", *TINY)
    assert code in (0, 5), err  # random weights make noise, which may be too fine for a tiny texture
    folder = tmp_path / "chair"
    assert (folder / "asset.glb").is_file()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["prompt"], manifest["seed"]) == ("a red chair", 0)
    assert "asset.glb" in manifest["files"]
    assert (folder / "previews" / "main" / "step-000003.png").is_file()
    assert "asset.glb" in out

    assert run("config", "validate", "chair/config.yaml")[0] == 0
    for name in ("obj", "ply"):
        assert run("export", "chair", "--format", name)[0] in (0, 5)
        assert (folder / f"asset.{name}").is_file()
    assert run("export", "chair", "--out", "new/chair.stl")[0] in (0, 5)
    assert (tmp_path / "new" / "chair.stl").is_file()
    code, out, _ = run("render", "chair")
    assert code == 0
    assert "chair/turntable.mp4" in out
    assert "chair/views.png" in out


def test_sd_layout_with_controls_and_a_lora(run, sd_checkpoint, tmp_path):
    control, lora = write_tiny_controlnet(tmp_path / "net", sd_checkpoint), tmp_path / "style.safetensors"
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    factors = {f"{layer}.lora_down.weight": torch.ones(2, 64), f"{layer}.lora_up.weight": torch.ones(64, 2)}
    save_file(factors, lora)
    controls = "objectives.color.guidance.controls"
    code, _, err = run(
        "text", "a red chair", "--guidance", "sd", "--model", sd_checkpoint, "--out", "chair", *TINY,
        "--steps", "3", "--lora", f"{lora}:0.01", "--set", f"{controls}.depth.model={control}",
        "--set", f"{controls}.shape={{model: {control}, condition: normal, scale: 0.5}}",
    )  # fmt: skip
    assert code in (0, 5), err
    manifest = json.loads((tmp_path / "chair" / "manifest.json").read_text())
    described = manifest["models"][f"control {control}"]
    assert len(described.pop("sha256")) == 64
    assert described == {"name": str(control), "commit": None, "path": str(control)}
    sha256 = hashlib.sha256(lora.read_bytes()).hexdigest()
    assert manifest["loras"] == [{"path": str(lora), "scale": 0.01, "sha256": sha256}]
    shown = (tmp_path / "chair" / "config.yaml").read_text()
    assert "guidance_scale: 101.0" in shown
    assert "polarity: near_bright" in shown

    save_file({name: 2 * tensor for name, tensor in factors.items()}, lora)
    manifest["status"] = "stopped"
    (tmp_path / "chair" / "manifest.json").write_text(json.dumps(seal(manifest)))
    code, _, err = run("resume", "chair")
    assert (code, "style.safetensors must be as when the run began" in err) == (2, True), err


def test_layout_of_a_model_chooses_the_presets(run, checkpoint, sd_checkpoint):
    shown = {name: run("config", "show", "--guidance", name, "--model", name)[1] for name in ("sd", "sdxl")}
    for name, folder in (("sd", sd_checkpoint), ("sdxl", checkpoint)):
        found = run("config", "show", "--model", folder)[1]
        assert found == shown[name].replace(f"  name: {name}\n", f"  name: {folder}\n")
    code, _, err = run("config", "show", "--guidance", "sdxl", "--model", sd_checkpoint)
    assert code == 2
    assert err.splitlines()[-1].endswith("with that of sd; use --guidance sd")
    assert run("config", "show", "--guidance", "sd", "--model", "sdxl-turbo")[0] == 2
    assert "name: sdxl-turbo" in run("config", "show", "--model", "sdxl-turbo")[1]


def test_default_folder_is_named_after_the_prompt_and_numbered(run, checkpoint, tmp_path):
    for _ in range(2):
        run("text", "A Red/Chair!", "--model", checkpoint, "--seed", "3", *TINY, "--steps", "1")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"a-red-chair-3", "a-red-chair-3-2"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_killed_run_resumes_to_the_same_mesh(checkpoint, tmp_path, number):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    command = [sys.executable, "-m", "pgc3d", "text", "a red chair", "--model", str(checkpoint), *TINY]
    command += ["--steps", "24"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    subprocess.run([*command, "--out", str(whole)], env=environment, capture_output=True, check=False)

    with subprocess.Popen(
        [*command, "--out", str(stopped)], env=environment, stderr=subprocess.PIPE
    ) as process:
        while not (stopped / "metrics.jsonl").is_file():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        process.send_signal(number)
        error = process.communicate()[1].decode()
    assert process.returncode == 128 + number
    assert "pgc3d resume" in error.splitlines()[-1]
    assert not (stopped / "asset.glb").exists()

    resume = [sys.executable, "-m", "pgc3d", "resume", str(stopped)]
    resumed = subprocess.run(resume, env=environment, capture_output=True, check=False, text=True)
    assert resumed.returncode in (0, 5), resumed.stderr
    assert (stopped / "asset.glb").read_bytes() == (whole / "asset.glb").read_bytes()
