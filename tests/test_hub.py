"""Every alias through a hub on this machine: fetched, found again, chosen, refused early, and pinned."""

import json
import shlex
import subprocess
import sys

import pytest
import torch
from hub import Hub, Repository, files_of, go_offline, online, serving
from safetensors.torch import save
from single import write_single_file
from tiny import (
    edit_json,
    write_tiny_controlnet,
    write_tiny_sd,
    write_tiny_sdxl,
    write_tiny_zero123,
)

from pgc3d.build.models import local_image_model
from pgc3d.diffusion.aliases import ALIASES, CONTROL_ALIASES
from pgc3d.diffusion.controlnet import load_control_network, resolve_control
from pgc3d.diffusion.hub import HALVES, PINNED, POSES, record_file
from pgc3d.diffusion.models import find_part, load_latent_diffusion, local_model, resolve_model
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.presets import IMAGE, TEXT, configure

NOT_FOR_US = (
    "README.md", ".gitattributes", "LICENSE.md", "unet/diffusion_pytorch_model.bin", "unet/model.onnx",
    "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_flax_model.msgpack",
    "vae_decoder/model.onnx", "text_encoder/flax_model.msgpack", "text_encoder/pytorch_model.bin",
    "safety_checker/model.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors",
    "model-pruned.safetensors", "model.ckpt", "model.fp16.safetensors", "diffusion_pytorch_model.bin",
)  # fmt: skip
MODELS = ("sdxl", "sdxl-turbo", "sd", "sd21", "sd-turbo", "zero123", "stable-zero123")
PARTS = {"sdxl": 4, "sdxl-turbo": 4, "sd": 3, "sd21": 3, "sd-turbo": 3, "zero123": 4, "stable-zero123": 4}
TURBO = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    made = {"sdxl": write_tiny_sdxl(root / "sdxl"), "sd": write_tiny_sd(root / "sd")}
    edit_json(made["sdxl"] / "model_index.json", force_zeros_for_empty_prompt=True)
    made["zero123"] = write_tiny_zero123(root / "zero123", pose=None)
    made["turbo"] = write_tiny_sdxl(root / "turbo")
    edit_json(made["turbo"] / "scheduler" / "scheduler_config.json", **TURBO)
    made["sdxl-net"] = write_tiny_controlnet(root / "sdxl-net", made["sdxl"])
    made["sd-net"] = write_tiny_controlnet(root / "sd-net", made["sd"])
    return made


def contents(folders):
    """What each alias' repository holds: its folder and which weights."""
    sources = {"sdxl": "sdxl", "sdxl-turbo": "turbo", "sd": "sd", "sd21": "sd", "sd-turbo": "sd"}
    sources |= {"zero123": "zero123", "stable-zero123": "zero123"}
    sources |= {name: f"{name.partition('-')[0]}-net" for name in CONTROL_ALIASES}
    made = {name: folders[source] for name, source in sources.items()}
    return made | {"sdxl-vae-fp16-fix": folders["sdxl"] / "vae"}


@pytest.fixture(scope="module")
def served(folders):
    hub = Hub()
    for alias, folder in contents(folders).items():
        name = ALIASES[alias]
        files = files_of(folder, half="both" if name in HALVES else "keep", extra=NOT_FOR_US)
        # The pinned commit is not the newest one.
        hub.repositories[name] = Repository(files, "f" * 40, (PINNED[name],) if name in PINNED else ())
    with serving(hub):
        yield hub


@pytest.fixture
def hub(served, monkeypatch, tmp_path):
    online(monkeypatch, served, tmp_path)
    kept = dict(served.repositories)
    served.forget()
    yield served
    served.repositories.clear()
    served.repositories.update(kept)


def cuda(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.mark.parametrize("alias", MODELS)
def test_model_is_fetched_once_in_one_precision_and_found_again_without_a_network(hub, monkeypatch, alias):
    repository = ALIASES[alias]
    assert local_model(alias) is None
    assert hub.requests == []
    source = resolve_model(alias, half=True)
    assert source.commit == PINNED.get(repository, "f" * 40)
    assert source.pose == POSES.get(repository)
    variant = ".fp16" if repository in HALVES else ""
    assert len(hub.weights) == PARTS[alias]
    assert all(name.endswith(f"{variant}.safetensors") for name in hub.weights)
    assert all(".fp16" not in name for name in hub.weights) or variant
    assert hub.served.total() < 30e6
    hub.forget()
    go_offline(monkeypatch)
    for found in (local_model(alias), resolve_model(alias, half=True)):
        assert (found.path, found.commit, found.layout) == (source.path, source.commit, source.layout)
    assert hub.requests == []


@pytest.mark.parametrize("alias", [*CONTROL_ALIASES, "sdxl-vae-fp16-fix"])
def test_single_module_is_fetched_once_and_loads(hub, monkeypatch, folders, alias):
    base = resolve_model(folders["sd" if alias.startswith("sd-") else "sdxl"])
    half = ".fp16" if ALIASES[alias] in HALVES else ""
    if alias in CONTROL_ALIASES:
        found = resolve_control(alias, base, half=True)
        assert found.commit == PINNED.get(ALIASES[alias], "f" * 40)
        assert load_control_network(found, load_latent_diffusion(base)).config.in_channels == 4
    else:
        assert find_part(alias, "vae", half=True).name == PINNED[ALIASES[alias]]
    assert hub.fetched == ["config.json", f"diffusion_pytorch_model{half}.safetensors"]
    hub.forget()
    go_offline(monkeypatch)
    assert find_part(alias, "controlnet" if alias in CONTROL_ALIASES else "vae").is_dir()
    assert hub.requests == []


def test_auto_takes_what_is_on_this_disk(hub, monkeypatch):
    cuda(monkeypatch)
    assert configure(TEXT)[0].models["text"].name == "mini"
    assert hub.requests == []
    resolve_model("sdxl", half=True)
    resolve_model("zero123", half=True)
    go_offline(monkeypatch)
    config, notes = configure(TEXT)
    assert (config.models["text"].name, config.last.resolution) == ("sdxl", (512, 1024))
    assert notes == ["guidance: sdxl, as there are a CUDA device and its weights"]
    assert configure(IMAGE)[0].models["image"].name == "zero123"
    assert configure(TEXT, options={"run": {"device": "cpu"}})[0].models["text"].name == "mini"


def test_cameras_of_a_fetched_novel_view_model_are_used(hub, tmp_path, folders):
    cameras = {"pose": "radius", "fovy_degrees": 33, "fill": 0.8, "border": 0.1}
    files = files_of(folders["zero123"]) | {"zero123.json": json.dumps(cameras).encode()}
    hub.repositories["someone/views"] = Repository(files)
    resolve_model("someone/views")
    assert local_image_model("someone/views").cameras == {"fovy_degrees": 33.0, "fill": 0.8, "border": 0.1}
    assert configure(IMAGE, model="someone/views")[0].view.fovy_degrees == 33.0


# Presets follow the model's own layout.


def test_hub_id_without_guidance_takes_the_presets_of_its_layout(hub, monkeypatch, folders):
    hub.repositories["someone/tune"] = Repository(files_of(folders["sd"], extra=NOT_FOR_US))
    config, _ = configure(TEXT, model="someone/tune")
    assert (config.models["text"].name, config.last.resolution) == ("someone/tune", (256, 512))
    assert hub.weights == []
    assert hub.served.total() < 100e3
    hub.repositories["someone/xl"] = Repository(files_of(folders["sdxl"]))
    assert configure(TEXT, model="someone/xl")[0].last.resolution == (512, 1024)
    with pytest.raises(ConfigError, match="must be in the layout of sdxl or sd here"):
        configure(TEXT, model=ALIASES["zero123"])
    go_offline(monkeypatch)
    assert configure(TEXT, model="someone/tune")[0].last.resolution == (256, 512)
    with pytest.raises(WeightsNotFoundError, match="--guidance sdxl or --guidance sd sets it"):
        configure(TEXT, model="someone/unknown")
    assert configure(TEXT, guidance="sd", model="someone/unknown")[0].models["text"].name == "someone/unknown"


# Other kinds.


def pipeline(folder, **index):
    """A repository whose model_index.json says something else."""
    files = files_of(folder, extra=NOT_FOR_US)
    content = json.loads((folder / "model_index.json").read_text()) | index
    files["model_index.json"] = json.dumps({k: v for k, v in content.items() if v is not None}).encode()
    return files


def part(files, name, **changes):
    content = json.loads(files[f"{name}/config.json"].read_text()) | changes
    return files | {f"{name}/config.json": json.dumps(content).encode()}


def transformer(name, network, text="T5EncoderModel"):
    """The listing of a pipeline of newer kinds: no UNet at all."""
    index = {
        "_class_name": name,
        "transformer": ["diffusers", network],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index |= {"text_encoder": ["transformers", text], "scheduler": ["diffusers", "FlowMatchEuler"]}
    names = ["transformer/diffusion_pytorch_model-00001-of-00003.safetensors", "transformer/config.json",
             "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors", "vae/config.json",
             "flux1-dev.safetensors"]  # fmt: skip
    return {"model_index.json": json.dumps(index).encode()} | dict.fromkeys(names, b"{}")


def pickles(folder):
    """A repository as the first converters made them: the weights are pickles."""
    files = files_of(folder)
    return {name.replace(".safetensors", ".bin"): content for name, content in files.items()}


KINDS = {
    "FLUX": (
        lambda f: transformer("FluxPipeline", "FluxTransformer2DModel"),
        "got FluxPipeline in .*: a transformer",
    ),
    "SD 3.5": (
        lambda f: transformer("StableDiffusion3Pipeline", "SD3Transformer2DModel"),
        "StableDiffusion3Pipeline in .*: a transformer",
    ),
    "Z-Image": (
        lambda f: transformer("ZImagePipeline", "ZImageTransformer2DModel", "Qwen3Model"),
        "ZImagePipeline",
    ),
    "Qwen-Image": (
        lambda f: transformer("QwenImagePipeline", "QwenImageTransformer2DModel", "Qwen2_5_VLForConditional"),
        "QwenImagePipeline",
    ),
    "inpainting": (
        lambda f: part(pipeline(f["sd"], _class_name="SDInpaintPipeline"), "unet", in_channels=9),
        "SDInpaintPipeline in .*: .* has 9, for inpainting",
    ),
    "editing": (
        lambda f: part(pipeline(f["sd"], _class_name="InstructPix2PixPipeline"), "unet", in_channels=8),
        "InstructPix2PixPipeline in .*: .* has 8, for image editing",
    ),
    "video": (
        lambda f: pipeline(f["sd"], _class_name="VideoPipeline", unet=["diffusers", "UNet3DConditionModel"]),
        "VideoPipeline in .*: its UNet is a UNet3DConditionModel",
    ),
    "refiner": (
        lambda f: pipeline(f["sdxl"], _class_name="SDXLImg2ImgPipeline", text_encoder=[None, None]),
        "SDXLImg2ImgPipeline",
    ),
    "Kolors": (
        lambda f: pipeline(f["sdxl"], _class_name="KolorsPipeline", text_encoder=["kolors", "ChatGLMModel"]),
        "KolorsPipeline in .*: its text encoder is a ChatGLMModel",
    ),
    "EDM": (
        lambda f: pipeline(f["sdxl"]) | {"scheduler/scheduler_config.json": b'{"_class_name": "EDMEuler"}'},
        "its EDMEuler does not",
    ),
    "16 latent channels": (
        lambda f: part(pipeline(f["sdxl"]), "vae", latent_channels=16),
        "got AutoencoderKL with 16",
    ),
    "LCM": (
        lambda f: part(pipeline(f["sd"]), "unet", time_cond_proj_dim=256),
        "takes the guidance scale as an input",
    ),
    "ControlNet": (lambda f: files_of(f["sd-net"]), "without a pipeline: it is a ControlNetModel"),
    "single files": (
        lambda f: {"README.md": b"", "tune_v1.safetensors": b"x" * 10_000},
        "fetch a file as `hf download someone/other tune_v1.safetensors` and give that to --model",
    ),
    "nothing": (lambda f: {"README.md": b""}, "it has no model_index.json"),
}


@pytest.mark.parametrize(("files", "line"), KINDS.values(), ids=KINDS)
def test_another_kind_is_refused_before_any_weight_is_fetched(hub, folders, files, line):
    hub.repositories["someone/other"] = Repository(files(folders))
    with pytest.raises(ConfigError, match=line) as caught:
        resolve_model("someone/other", half=True)
    message = str(caught.value)
    assert "someone" in message
    assert "\n" not in message
    assert hub.weights == []
    assert hub.served.total() < 100e3
    with pytest.raises(ConfigError, match=line):
        configure(TEXT, model="someone/other")


@pytest.mark.parametrize("name", ["kxic/zero123-xl", "someone/old"])
def test_pickles_are_refused_before_any_of_them_is_fetched(hub, folders, name):
    hub.repositories[name] = Repository(pickles(folders["zero123" if "kxic" in name else "sdxl"]))
    with pytest.raises(WeightsNotFoundError, match=r"only unet/diffusion_pytorch_model\.bin, a pickle"):
        resolve_model(name)
    assert hub.weights == []


def test_pickled_module_is_refused_before_it_is_fetched(hub, folders):
    hub.repositories["someone/net"] = Repository(pickles(folders["sd-net"]))
    with pytest.raises(WeightsNotFoundError, match=r"someone/net must .* only diffusion_pytorch_model\.bin"):
        find_part("someone/net", "controlnet")
    assert hub.weights == []


def test_a_union_of_controls_in_the_clothes_of_one_is_refused(hub, folders):
    (file,) = folders["sdxl-net"].glob("*.safetensors")
    from safetensors.torch import load_file

    more = {f"task_embedding.{index}": torch.zeros(2) for index in range(19)}
    files = files_of(folders["sdxl-net"]) | {file.name: save(load_file(file) | more)}
    hub.repositories["someone/union"] = Repository(files)
    base = resolve_model(folders["sdxl"])
    with pytest.raises(ConfigError, match=r"got 19 unknown, the first is task_embedding\.0"):
        load_control_network(resolve_control("someone/union", base), load_latent_diffusion(base))


# Commits.


def test_pinned_commit_is_fetched_though_there_is_a_newer_one(hub):
    assert resolve_model("sdxl").commit == PINNED[ALIASES["sdxl"]]
    assert not record_file().exists()
    assert resolve_model("sd").commit == "f" * 40
    assert json.loads(record_file().read_text()) == {ALIASES["sd"]: {"commit": "f" * 40}}


def test_another_commit_on_this_disk_is_named_with_the_command(hub, monkeypatch, tmp_path):
    repository, pinned = ALIASES["sdxl"], PINNED[ALIASES["sdxl"]]
    monkeypatch.delitem(PINNED, repository)
    other = resolve_model("sdxl", half=True)
    record_file().unlink()
    monkeypatch.setitem(PINNED, repository, pinned)
    go_offline(monkeypatch)
    assert local_model("sdxl") is None
    with pytest.raises(WeightsNotFoundError) as caught:
        resolve_model("sdxl", half=True)
    message = str(caught.value)
    assert f"its commit {pinned} is not on this disk, only {'f' * 40} in {other.path}" in message
    assert f"`hf download {repository} --revision {pinned} --include " in message
    assert "\n" not in message
    assert resolve_model(str(other.path)).layout == "sdxl"  # what the message offers


def test_the_only_snapshot_is_taken_where_nothing_was_recorded(hub, monkeypatch):
    source = resolve_model("sd")
    record_file().unlink()
    go_offline(monkeypatch)
    assert resolve_model("sd").path == source.path


@pytest.mark.parametrize("alias", ["sdxl", "zero123", "sdxl-depth", "sdxl-vae-fp16-fix"])
def test_command_of_the_message_fetches_what_is_needed_and_no_more(hub, monkeypatch, tmp_path, alias):
    go_offline(monkeypatch)
    find = {"sdxl-depth": "controlnet", "sdxl-vae-fp16-fix": "vae"}.get(alias)
    with pytest.raises(WeightsNotFoundError) as caught:
        find_part(alias, find, half=True) if find else resolve_model(alias, half=True)
    command = shlex.split(str(caught.value).split("`")[1])
    assert command[:2] == ["hf", "download"]
    environment = {
        "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "hub"), "PATH": "/usr/bin:/bin",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HOME": str(tmp_path),
    }  # fmt: skip
    program = [sys.executable, "-m", "huggingface_hub.cli.hf", *command[1:]]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(hub.weights) == (1 if find else 4)
    hub.forget()
    assert (find_part(alias, find, half=True) if find else resolve_model(alias, half=True).path).is_dir()
    assert hub.requests == []


def test_model_that_is_gone_or_gated_says_so(hub):
    del hub.repositories[ALIASES["sd-turbo"]]
    with pytest.raises(WeightsNotFoundError, match="may have been removed: sdxl-turbo is the nearest"):
        resolve_model("sd-turbo")
    hub.repositories["someone/secret"] = Repository({"model_index.json": b"{}"}, gated=True)
    with pytest.raises(WeightsNotFoundError, match="hf auth login"):
        resolve_model("someone/secret")


# Single files.


def test_single_file_fetches_its_tokenizers_and_no_weights(hub, monkeypatch, folders, tmp_path):
    for kind, folder in (("sdxl", "sdxl"), ("sd", "sd")):
        hub.forget()
        path = write_single_file(tmp_path / f"{kind}.safetensors", folders[folder], kind)
        source = resolve_model(path)
        assert source.layout == kind
        # Tokenizers with the same file share it in the cache, whichever is fetched first.
        assert {"tokenizer/merges.txt", "tokenizer_2/merges.txt"} & set(hub.fetched)
        assert hub.weights == []
    go_offline(monkeypatch)
    assert resolve_model(path).path == source.path
    cuda(monkeypatch)
    assert configure(TEXT, model=str(path))[0].last.resolution == (256, 512)
