"""What is said of a text-to-image model, and which of its settings reach the guidance."""

import pytest
import torch
from tiny import edit_json, write_tiny_sd, write_tiny_sdxl

from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.notes import run_notes
from pgc3d.config import load_config, preset
from pgc3d.diffusion.kinds import why_distilled
from pgc3d.diffusion.models import _vae_dtype
from pgc3d.errors import ConfigError
from pgc3d.requirements import ModelUse

CPU = torch.device("cpu")
TURBO = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As SDXL's base: its own pipeline puts zeros for an empty prompt."""
    made = write_tiny_sdxl(tmp_path_factory.mktemp("notes") / "base")
    edit_json(made / "model_index.json", force_zeros_for_empty_prompt=True)
    return made


def located(folder, *overrides, layers=()):
    config = load_config(layers, options={"models": {"text": {"name": str(folder)}}}, overrides=overrides)
    return config, locate_models(config, CPU)


def notes(folder, *overrides, layers=()):
    return run_notes("a chair", *located(folder, *overrides, layers=layers))


def test_what_an_empty_negative_prompt_becomes_is_said_and_done(folder):
    advice = "--set models.text.empty_prompt="
    (line,) = notes(folder)
    assert line.startswith(f"the empty negative prompt is encoded as text; {advice}zeros")
    (line,) = notes(folder, "models.text.empty_prompt=zeros")
    assert line.startswith(f"the empty negative prompt is zeros; {advice}text")
    assert notes(folder, "objectives.color.guidance.negative_prompt=ugly") == []
    negatives = {}
    for name in ("text", "zeros"):
        _, models = located(folder, f"models.text.empty_prompt={name}")
        negatives[name] = LoadedModels(models, CPU).embed("text", ("",))
    assert negatives["zeros"].tokens.count_nonzero() == negatives["zeros"].pooled.count_nonzero() == 0
    assert negatives["text"].tokens.abs().max() > 0


def test_words_of_a_negative_prompt_that_the_bundled_model_does_not_have_are_said():
    key = "objectives.color.guidance.negative_prompt"
    known, unknown = (notes("mini", f"{key}={text}", layers=[preset("mini")]) for text in ("red", "shadow"))
    assert known == []
    (line,) = unknown
    assert line.startswith("mini does not have 'shadow' of the negative prompt")
    assert line.endswith(f"--set {key}='' removes it")


@pytest.mark.parametrize("name", ["mini", "other"])
def test_zeros_are_refused_where_the_model_was_not_made_for_them(name, tmp_path):
    folder = "mini" if name == "mini" else write_tiny_sd(tmp_path / "sd")
    with pytest.raises(ConfigError, match=r"empty_prompt=zeros must go with a model whose own pipeline"):
        located(folder, "models.text.empty_prompt=zeros")


def test_presets_of_the_methods_own_code_encode_the_empty_prompt_as_text():
    for name in ("sdxl", "texture-sdxl", "sd", "texture-sd"):
        config = load_config([preset(name)])
        assert config.models["text"].empty_prompt == "text"
        assert config.last.objectives["color"].guidance.guidance_scale == 101.0


def test_distilled_models_at_another_models_scale_are_said(tmp_path):
    folder = write_tiny_sdxl(tmp_path / "plain")
    assert notes(folder) == []
    edit_json(folder / "scheduler" / "scheduler_config.json", **TURBO)
    (line,) = notes(folder, "objectives.color.guidance.resolution=64")
    assert "by its sampler's trailing timesteps" in line
    assert "objectives.color.guidance.guidance_scale=2 (now 100)" in line
    assert "objectives.color.guidance.resolution=0 for its own (now 64)" in line
    assert notes(folder, "objectives.color.guidance.guidance_scale=1.5") == []
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert notes(folder) == []  # models that predict v are sampled from the last level on as well
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler")
    assert "by its LCMScheduler" in notes(folder)[0]


@pytest.mark.parametrize(
    ("name", "distilled"),
    [
        ("sdxl-turbo", True),
        ("ByteDance/SDXL-Lightning", True),
        ("latent-consistency/lcm-lora-sdxl:0.5", True),
        ("models/dreamshaperXL_v21TurboDPMSDE.safetensors", False),  # cannot be told from the letters
        ("models/dreamshaper_turbo_v2.safetensors", True),
        ("Hyper-SDXL-8steps-lora.safetensors", True),
        ("turbo/plain-model", False),
        ("hyperrealism_v3.safetensors", False),
        ("turbochargers.safetensors", False),
        ("sdxl", False),
    ],
)
def test_names_of_distilled_models(name, distilled):
    assert bool(why_distilled(name, None)) == distilled


def test_bundled_model_has_nothing_to_say():
    assert notes("mini") == []


@pytest.mark.parametrize(
    ("layout", "said", "expected"),
    [
        ("sd", None, torch.float16),
        ("sd", False, torch.float16),
        ("sd", True, torch.bfloat16),
        ("zero123", None, torch.float16),
        ("sdxl", None, torch.bfloat16),
        ("sdxl", False, torch.float16),
        ("sdxl", True, torch.bfloat16),
    ],
)
def test_vae_runs_in_float16_unless_it_would_overflow(tmp_path, layout, said, expected):
    (tmp_path / "config.json").write_text("{}")
    if said is not None:
        edit_json(tmp_path / "config.json", force_upcast=said)
    assert _vae_dtype(tmp_path, None, torch.device("cuda"), layout=layout) == expected
    assert _vae_dtype(tmp_path, None, CPU, layout=layout) == torch.float32


def test_zero_terminal_model_distils_below_its_last_level(tmp_path):
    folder = write_tiny_sdxl(tmp_path / "zero")
    edit_json(
        folder / "scheduler" / "scheduler_config.json",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    store = LoadedModels(located(folder)[1], CPU)
    model = store.get("text", ModelUse()).diffusion
    assert (model.train_steps, model.prediction) == (999, "v_prediction")
    noisy = torch.randn(1, 4, 8, 8)
    text = store.embed("text", ("",))
    output = model.predict(
        noisy,
        torch.tensor([998]),
        conditional=text,
        unconditional=text,
        time_ids=model.time_ids(64, 64),
    )
    assert all(part.isfinite().all() for part in output)


def test_base_without_a_single_file_is_refused(folder):
    with pytest.raises(ConfigError, match=r"base must go with a model that is one file"):
        located(folder, f"models.text.base={folder}")


def test_vae_that_does_not_fit_is_refused_before_a_run_begins(folder, tmp_path):
    other = write_tiny_sdxl(tmp_path / "other")
    edit_json(other / "vae" / "config.json", latent_channels=16)
    with pytest.raises(ConfigError, match=r"the UNet's 4 latent channels, .* with 16"):
        located(folder, f"models.text.vae={other / 'vae'}")
