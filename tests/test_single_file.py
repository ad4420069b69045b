"""One file with all weights is the same model as the folder that it was written from."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from single import single_tensors, single_unet, single_vae, write_single_file
from tiny import _script, edit_json, write_tiny_sd, write_tiny_sdxl

from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_objectives
from pgc3d.config import load_config
from pgc3d.diffusion.first_names import unet_layer, vae_layer
from pgc3d.diffusion.models import load_latent_diffusion, model_layout, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.planning.plan import read_size
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task

CPU = torch.device("cpu")
KINDS = ("sdxl", "sd", "sd2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    sd = write_tiny_sd(root / "sd")
    return {"sdxl": write_tiny_sdxl(root / "sdxl", seed=1), "sd": sd, "sd2": sd}


@pytest.fixture(scope="module")
def files(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    said = {"sd2": {"modelspec.prediction_type": "epsilon"}}
    return {
        kind: write_single_file(root / f"{kind}.safetensors", folders[kind], kind, metadata=said.get(kind))
        for kind in KINDS
    }


@pytest.fixture(autouse=True)
def private_record(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_equals_the_folders(files, folders, kind):
    source, folder = resolve_model(files[kind], base=folders[kind]), resolve_model(folders[kind])
    assert (source.layout, source.commit, source.name) == (folder.layout, None, str(files[kind]))
    assert model_layout(str(files[kind])) == folder.layout
    found, expected = load_latent_diffusion(source), load_latent_diffusion(folder)
    for part in ("unet", "vae"):
        ours, theirs = (getattr(model, part).state_dict() for model in (found, expected))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    prompts = ["a red chair", ""]
    one, other = encode_prompts(source, prompts), encode_prompts(folder, prompts)
    assert torch.equal(one.tokens, other.tokens)
    assert other.pooled is None or torch.equal(one.pooled, other.pooled)
    assert read_size(source, {}) == read_size(folder, {})


@pytest.mark.parametrize("kind", ["sdxl", "sd"])
def test_gradient_equals_the_folders(files, folders, kind):
    gradients = []
    for name, base in ((files[kind], folders[kind]), (folders[kind], None)):
        config = load_config(options={"models": {"text": {"name": str(name), "base": base and str(base)}}})
        models = LoadedModels(locate_models(config, CPU), CPU)
        context = RunContext.of(config, Task("a chair"), build_rasterizer("cpu", CPU), CPU, models)
        guidance = build_objectives(context, "main")["color"].guidance
        generator = torch.Generator().manual_seed(1)
        image, noise = (
            torch.rand(1, 64, 64, 3, generator=generator),
            torch.randn(1, 4, 8, 8, generator=generator),
        )
        output = guidance.gradient(
            image,
            timesteps=torch.tensor([300]),
            noise=noise,
            posterior_noise=noise,
            texts=torch.zeros(1, dtype=torch.long),
        )
        gradients.append(output.gradient)
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_librarys_own_conversion_agrees(folders, kind):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    model, tensors = load_latent_diffusion(folders[kind]), single_tensors(folders[kind], kind)
    unet, vae = dict(model.unet.config), dict(model.vae.config)
    for theirs, ours in (
        (convert_ldm_unet_checkpoint(dict(tensors), unet), model.unet.state_dict()),
        (convert_ldm_vae_checkpoint(dict(tensors), vae), model.vae.state_dict()),
    ):
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize("kind", ["sdxl", "sd2"])
def test_the_librarys_own_conversion_of_the_larger_encoder_agrees(files, folders, kind):
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    part, prefix = {
        "sdxl": ("text_encoder_2", "conditioner.embedders.1.model."),
        "sd2": ("text_encoder", "cond_stage_model.model."),
    }[kind]
    tensors = single_tensors(folders[kind], kind)
    theirs = convert_open_clip_checkpoint(None, tensors, prefix=prefix)
    (file,) = (folders[kind] / part).glob("*.safetensors")
    expected = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in load_file(file).items()}
    expected = {
        name.replace("text_model.text_projection", "text_projection"): t for name, t in expected.items()
    }
    assert all(torch.equal(theirs[name], expected[name]) for name in expected)


def test_names_cover_the_full_sizes():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    script = _script("make_random_sdxl")
    with torch.device("meta"):
        sdxl = UNet2DConditionModel(**script.unet_config(full_size=True)).state_dict()
        sd = UNet2DConditionModel(**script.sd_unet_config(full_size=True)).state_dict()
        vae = AutoencoderKL(**script.vae_config(full_size=True)).state_dict()
    for state in (sdxl, sd):
        old = [name.removeprefix("model.diffusion_model.") for name in single_unet(state, 2)]
        parts = [name.rpartition(".") for name in old]
        assert {f"{unet_layer(layer, 2)}.{kind}" for layer, _, kind in parts} == set(state)
    old = [name.removeprefix("first_stage_model.") for name in single_vae(vae, 4)]
    assert {f"{vae_layer(name.rpartition('.')[0], 4)}.{name.rpartition('.')[2]}" for name in old} == set(vae)
    # What is counted in the published file of SDXL: these, 197 of CLIP and 390 of OpenCLIP are 2515.
    assert (len(sdxl), len(vae)) == (1680, 248)


def test_upsampling_without_attention_is_one_place_earlier():
    assert unet_layer("output_blocks.2.1.conv", 2) == "up_blocks.0.upsamplers.0.conv"
    assert unet_layer("output_blocks.2.2.conv", 2) == "up_blocks.0.upsamplers.0.conv"
    assert unet_layer("output_blocks.5.1.norm", 2) == "up_blocks.1.attentions.2.norm"


def test_half_precision_and_marks_of_the_noise(folders, tmp_path):
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in single_tensors(folders["sdxl"], "sdxl").items()
    }
    path = tmp_path / "tune.safetensors"
    save_file({name: t.contiguous() for name, t in halves.items()} | {"v_pred": torch.ones(0)}, path)
    model = load_latent_diffusion(resolve_model(path, base=folders["sdxl"]))
    assert (model.prediction, model.train_steps) == ("v_prediction", 1000)
    assert next(model.unet.parameters()).dtype == torch.float32
    marks = {"v_pred": torch.ones(0), "ztsnr": torch.ones(0)}
    save_file({name: t.contiguous() for name, t in halves.items()} | marks, path)
    model = load_latent_diffusion(resolve_model(path, base=folders["sdxl"]))
    assert (model.prediction, model.train_steps) == ("v_prediction", 999)
    source = resolve_model(path, base=folders["sdxl"], prediction="epsilon")
    assert load_latent_diffusion(source).prediction == "epsilon"


def test_vae_of_another_folder_takes_the_place_of_the_files_own(files, folders, tmp_path):
    other = write_tiny_sdxl(tmp_path / "other", seed=9)
    source = resolve_model(files["sdxl"], base=folders["sdxl"], vae=other)
    found, expected = load_latent_diffusion(source).vae, load_latent_diffusion(other).vae
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_vae_that_overflows_is_refused_as_the_folders_is(files, folders, tmp_path):
    base = write_tiny_sdxl(tmp_path / "base")
    edit_json(base / "vae" / "config.json", force_upcast=True)
    source = resolve_model(files["sdxl"], base=base)
    with pytest.raises(ConfigError, match="float16 must not need float32"):
        load_latent_diffusion(source, vae_dtype=torch.float16)


# What is refused, in one line.


ZERO = torch.zeros(2, 2)
PREFIX = "model.diffusion_model."
FOREIGN = {
    "FLUX": ({f"{PREFIX}double_blocks.0.img_attn.qkv.weight": ZERO}, "FLUX or one of its kind"),
    "SD 3": ({f"{PREFIX}joint_blocks.0.x_block.attn.qkv.weight": ZERO}, ", SD 3,"),
    "LoRA": ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": ZERO}, "a LoRA, .* --lora"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": ZERO}, ", a ControlNet,"),
    "EDM": ({"edm_mean": ZERO}, "the noise of EDM"),
    "refiner": ({"conditioner.embedders.0.model.text_projection": ZERO}, "the refiner of SDXL"),
    "VAE": ({"first_stage_model.encoder.conv_in.weight": ZERO}, "without UNet"),
    "UNet alone": ({f"{PREFIX}input_blocks.0.0.weight": torch.zeros(2, 4, 3, 3)}, "without text encoder"),
    "today's names": ({"down_blocks.0.resnets.0.conv1.weight": ZERO}, "its first tensor is down_blocks"),
    "nothing": ({}, "its first tensor is none"),
}


@pytest.mark.parametrize(("tensors", "line"), FOREIGN.values(), ids=FOREIGN)
def test_file_of_another_kind_is_named(tmp_path, tensors, line):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=line) as caught:
        resolve_model(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def write(path, tensors):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(("channels", "use"), [(9, "for inpainting"), (8, "for image editing")])
def test_unet_that_sees_more_is_refused(folders, tmp_path, channels, use):
    tensors = single_tensors(folders["sd"], "sd")
    tensors[f"{PREFIX}input_blocks.0.0.weight"] = torch.zeros(32, channels, 3, 3)
    with pytest.raises(ConfigError, match=f"got {channels} input channels, {use}"):
        resolve_model(write(tmp_path / "x.safetensors", tensors), base=folders["sd"])


def test_base_of_another_kind_or_size_is_refused(files, folders, tmp_path):
    with pytest.raises(ConfigError, match=r"in the layout of sdxl, .* --set models\.text\.base=FOLDER"):
        resolve_model(files["sdxl"], base=folders["sd"])
    base = write_tiny_sd(tmp_path / "wide")
    edit_json(base / "unet" / "config.json", cross_attention_dim=48)
    edit_json(base / "text_encoder" / "config.json", hidden_size=48)
    with pytest.raises(ConfigError, match=r"must fit its base .* prompts of 48 numbers, got 32 and \[32\]"):
        resolve_model(files["sd"], base=base)


def test_tensors_that_are_missing_unknown_or_without_a_part_are_named(folders, tmp_path):
    tensors, path = single_tensors(folders["sdxl"], "sdxl"), tmp_path / "x.safetensors"
    unknown = {f"{PREFIX}input_blocks.1.0.adapter.weight": ZERO}
    with pytest.raises(ConfigError, match=r"got 1 unknown, the first is down_blocks\.0\.resnets\.0\.adapter"):
        load_latent_diffusion(resolve_model(write(path, tensors | unknown), base=folders["sdxl"]))
    stranger = {f"{PREFIX}task_blocks.weight": ZERO}
    with pytest.raises(ConfigError, match=r"got the unknown tensor model\.diffusion_model\.task_blocks"):
        load_latent_diffusion(resolve_model(write(path, tensors | stranger), base=folders["sdxl"]))
    gone = f"{PREFIX}out.2.bias"
    whole = {name: tensor for name, tensor in tensors.items() if name != gone}
    with pytest.raises(WeightsNotFoundError, match=r"got 1 missing, the first is conv_out\.bias"):
        load_latent_diffusion(resolve_model(write(path, whole), base=folders["sdxl"]))
    half = {name: tensor for name, tensor in tensors.items() if not name.endswith("resblocks.0.ln_1.bias")}
    source = resolve_model(write(path, half), base=folders["sdxl"])
    with pytest.raises(WeightsNotFoundError, match="got 1 missing"):
        encode_prompts(source, ["a"])
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage")}
    with pytest.raises(ConfigError, match=r"got no vae; name one with --set models\.text\.vae="):
        resolve_model(write(path, bare), base=folders["sdxl"])
    assert resolve_model(path, base=folders["sdxl"], vae=folders["sdxl"]).file == path


def test_prediction_of_sd2_must_be_said_where_the_file_does_not(folders, tmp_path):
    path = write_single_file(tmp_path / "two.safetensors", folders["sd2"], "sd2")
    with pytest.raises(
        ConfigError,
        match=r"must be known, got no sign of it; use --set models\.text\.prediction=v_prediction",
    ):
        resolve_model(path, base=folders["sd2"])
    source = resolve_model(path, base=folders["sd2"], prediction="v_prediction")
    assert load_latent_diffusion(source).prediction == "v_prediction"


def test_missing_file_pickle_and_missing_tokenizers_say_what_to_do(files, tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"must be a file, got .*none\.safetensors"):
        resolve_model(tmp_path / "none.safetensors")
    with pytest.raises(WeightsNotFoundError, match=r"got models/x\.safetensors, which does not"):
        resolve_model("models/x.safetensors")
    (tmp_path / "x.ckpt").write_bytes(b"\x80")
    with pytest.raises(WeightsNotFoundError, match=r"the pickle .*x\.ckpt, which is never loaded"):
        resolve_model(tmp_path / "x.ckpt")
    with pytest.raises(WeightsNotFoundError) as caught:
        resolve_model(files["sdxl"])
    message = str(caught.value)
    parts = ("must have tokenizers, got none", "text.base=FOLDER", "hf download stabilityai/", '"*.txt"')
    for part in parts:
        assert part in message
    assert '.safetensors"' not in message
    assert "\n" not in message
