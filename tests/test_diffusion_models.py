import json
import shutil

import pytest
import torch
from hub import Hub, Repository, files_of, online, serving
from safetensors.torch import load_file, save_file
from tiny import edit_json, write_tiny_sd, write_tiny_sdxl

from pgc3d.diffusion.aliases import ALIASES
from pgc3d.diffusion.hub import files_to_fetch, is_hub_id, record_file
from pgc3d.diffusion.models import find_part, load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.view_prompts import ViewPromptConfig

OWNED = "someone/tiny-sdxl"
COMMIT, LATER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("models"))


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def private_record(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_whole_folder_is_described(folder):
    edit_json(folder / "model_index.json")
    (folder / "view_prompts.json").write_text(
        json.dumps(
            {"template": "{prompt}, {azimuth}", "azimuth_step_degrees": 15, "backgrounds": {"w": [1, 1, 1]}}
        )
    )
    (folder / "vocabulary.json").write_text(json.dumps({"words": ["red", "chair"]}))
    source = resolve_model(folder)
    assert source.layout == "sdxl"
    assert source.commit is None
    assert source.view_prompts == ViewPromptConfig(
        template="{prompt}, {azimuth}", azimuth_step_degrees=15.0, backgrounds={"w": (1.0, 1.0, 1.0)}
    )
    assert hash(source.view_prompts) is not None
    assert source.vocabulary == ("red", "chair")


@pytest.mark.parametrize("content", [{"templat": "x"}, {"azimuth_step_degrees": 50}, {"elevation_words": []}])
def test_wrong_view_prompts_of_a_checkpoint_are_refused(folder, content):
    (folder / "view_prompts.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"view_prompts\.json"):
        resolve_model(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"got .*nowhere, which does not exist"):
        resolve_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder_2/model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(WeightsNotFoundError, match=missing.replace(".", r"\.")) as caught:
        resolve_model(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_missing_tokenizer_is_named(folder):
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(WeightsNotFoundError, match="tokenizer_2"):
        resolve_model(folder)


@pytest.mark.parametrize(
    "part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
)
def test_truncated_weights_are_named(folder, part):
    file = folder / part
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(WeightsNotFoundError, match=rf"{part}.*whole safetensors".replace(".s", r"\.s")):
        resolve_model(folder)


def test_damaged_json_is_named(folder):
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(WeightsNotFoundError, match=r"unet/config\.json must be readable JSON"):
        resolve_model(folder)


def test_pickled_weights_are_never_loaded(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(WeightsNotFoundError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        resolve_model(folder)


def drop_a_tensor(file):
    tensors = load_file(file)
    name = sorted(name for name in tensors if name.endswith("weight"))[0]
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_missing_tensor_is_named(folder, part):
    name = drop_a_tensor(folder / part / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsNotFoundError, match=f"got 1 missing, the first is {name}"):
        load_latent_diffusion(folder)


def test_missing_tensor_of_a_text_encoder_is_named(folder):
    drop_a_tensor(folder / "text_encoder_2" / "model.safetensors")
    with pytest.raises(WeightsNotFoundError, match=r"text_encoder_2.*got 1 missing"):
        encode_prompts(resolve_model(folder), ["a cat"])


def test_weights_of_another_shape_are_named(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"quant_conv.bias": torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsNotFoundError, match=r"quant_conv\.bias has the shape \[3\] instead of"):
        load_latent_diffusion(folder)


def test_weights_that_the_config_does_not_know_are_refused(folder):
    for part in ("unet", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        save_file(tensors | {"task_embedding": torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"unet must hold .* got 1 unknown, the first is task_embedding"):
        load_latent_diffusion(folder)
    with pytest.raises(ConfigError, match=r"text_encoder.* the first is .*task_embedding"):
        encode_prompts(resolve_model(folder), ["a cat"])


MISFITS = {
    "prompts of another width": (
        {"unet": {"cross_attention_dim": 48}},
        "UNet's cross_attention_dim is 48 and its text encoders give 64",
    ),
    "another pooled embedding": (
        {"text_encoder_2": {"projection_dim": 16}},
        "projection_class_embeddings_input_dim is 80 and its second text encoder gives 64",
    ),
    "other latents": ({"vae": {"latent_channels": 16}}, "4 latent channels, got AutoencoderKL with 16"),
    "another VAE": ({"vae": {"_class_name": "AutoencoderTiny"}}, "got AutoencoderTiny with 4"),
    "inpainting": ({"unet": {"in_channels": 9}}, "must have 4 input channels, but has 9, for inpainting"),
    "editing": ({"unet": {"in_channels": 8}}, "must have 4 input channels, but has 8, for image editing"),
    "LCM": ({"unet": {"time_cond_proj_dim": 256}}, "takes the guidance scale as an input"),
    "unCLIP": ({"unet": {"class_embed_type": "projection"}}, "class_embed_type projection"),
}


@pytest.mark.parametrize(("changes", "line"), MISFITS.values(), ids=MISFITS)
def test_parts_that_do_not_fit_are_refused_before_they_are_loaded(folder, changes, line):
    for part, change in changes.items():
        edit_json(folder / part / "config.json", **change)
    with pytest.raises(ConfigError, match=line) as caught:
        resolve_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"addition_embed_type": "image"}, {"addition_embed_type": "text_image"}])
def test_other_kind_of_model_is_refused(folder, change):
    edit_json(folder / "unet" / "config.json", **change)
    with pytest.raises(ConfigError, match="checkpoint in SD, SDXL or Zero123 layout"):
        resolve_model(folder)


def test_empty_places_of_a_pipeline_do_not_change_its_layout(tmp_path):
    folder = write_tiny_sd(tmp_path / "sd")
    edit_json(folder / "model_index.json", image_encoder=[None, None], safety_checker=[None, None])
    assert resolve_model(folder).layout == "sd"


def test_aliases_are_hub_ids():
    assert all(is_hub_id(name) for name in ALIASES.values())


def test_another_vae_by_its_alias_is_looked_for_on_the_hub(original):
    with pytest.raises(WeightsNotFoundError, match=r"madebyollin/sdxl-vae-fp16-fix .*HF_HUB_OFFLINE"):
        load_latent_diffusion(original, vae="sdxl-vae-fp16-fix")


def test_unknown_prediction_type_is_refused(folder):
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(ConfigError, match="prediction_type must be one of"):
        load_latent_diffusion(folder)


def test_half_precision_variant_on_a_cpu_gives_float32(folder):
    for file in list(folder.rglob("*.safetensors")):
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()
    model = load_latent_diffusion(folder)
    assert {p.dtype for m in (model.unet, model.vae) for p in m.parameters()} == {torch.float32}
    assert encode_prompts(resolve_model(folder), ["a cat"]).tokens.dtype == torch.float32


def test_sharded_weights(folder, original):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, file.with_name(shard))
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()
    found, expected = load_latent_diffusion(folder).unet, load_latent_diffusion(original).unet
    torch.testing.assert_close(dict(found.named_parameters()), dict(expected.named_parameters()))
    file.with_name("two.safetensors").unlink()
    with pytest.raises(WeightsNotFoundError, match=r"two\.safetensors"):
        resolve_model(folder)


def test_older_names_of_the_vaes_attention(folder, original):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        part = next((part for part in old if f".{part}." in name), None)
        tensors[name.replace(part, old[part]) if part else name] = tensor
    assert any(".query." in name for name in tensors)
    save_file(tensors, file)
    found, expected = load_latent_diffusion(folder).vae, load_latent_diffusion(original).vae
    torch.testing.assert_close(dict(found.named_parameters()), dict(expected.named_parameters()))


def test_another_vae_takes_the_place_of_the_checkpoints_own(folder, original):
    edit_json(folder / "vae" / "config.json", scaling_factor=0.5)
    model = load_latent_diffusion(original, vae=folder)
    assert model.vae.config.scaling_factor == 0.5
    assert load_latent_diffusion(original, vae=folder / "vae").vae.config.scaling_factor == 0.5


# The hub, played by a server on this machine.


@pytest.fixture
def hub(original, monkeypatch, tmp_path):
    files = files_of(original, extra=("single_file_checkpoint.safetensors",))
    with serving(Hub({OWNED: Repository(files, COMMIT)})) as hub:
        online(monkeypatch, hub, tmp_path)
        yield hub


def test_download_is_recorded_and_the_network_is_not_asked_again(hub, tmp_path):
    source = resolve_model(OWNED, cache=tmp_path / "hub")
    assert (source.layout, source.commit) == ("sdxl", COMMIT)
    assert json.loads(record_file().read_text()) == {OWNED: {"commit": COMMIT}}
    hub.forget()
    hub.repositories[OWNED].commit = LATER
    assert resolve_model(OWNED, cache=tmp_path / "hub").commit == COMMIT
    assert hub.requests == []


def test_moved_commit_is_refused(hub, tmp_path):
    resolve_model(OWNED, cache=tmp_path / "hub")
    hub.repositories[OWNED].commit = LATER
    with pytest.raises(WeightsNotFoundError, match=f"no longer has commit {COMMIT}.*models.json"):
        resolve_model(OWNED, cache=tmp_path / "another")


def test_incomplete_cache_is_completed(hub, tmp_path):
    source = resolve_model(OWNED, cache=tmp_path / "hub")
    (source.path / "unet" / "config.json").unlink()
    assert resolve_model(OWNED, cache=tmp_path / "hub").path == source.path
    assert (source.path / "unet" / "config.json").is_file()


def test_incomplete_cache_without_network_names_the_file(hub, tmp_path, monkeypatch):
    source = resolve_model(OWNED, cache=tmp_path / "hub")
    (source.path / "unet" / "config.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsNotFoundError, match=r"unet/config\.json.*HF_HUB_OFFLINE"):
        resolve_model(OWNED, cache=tmp_path / "hub")


def test_commit_that_cannot_be_written_down_is_said(hub, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert resolve_model(OWNED, cache=tmp_path / "hub").commit == COMMIT
    assert f"the commit of {OWNED} cannot be recorded" in caplog.text


def test_pipeline_in_the_place_of_a_module_is_refused_before_its_weights(hub):
    with pytest.raises(
        ConfigError, match=rf"{OWNED} must hold one module with its config\.json, .* pipeline"
    ):
        find_part(OWNED, "vae")
    assert hub.weights == []


def test_unknown_repository(hub, tmp_path):
    with pytest.raises(WeightsNotFoundError, match="no such model"):
        resolve_model("someone/nothing", cache=tmp_path / "hub")


def test_no_network_and_nothing_cached_says_what_to_do(tmp_path):
    with pytest.raises(WeightsNotFoundError) as caught:
        resolve_model("sdxl", cache=tmp_path / "hub")
    message = str(caught.value)
    for part in (
        "stabilityai/stable-diffusion-xl-base-1.0",
        "hf download",
        "--model PATH",
        "--guidance mini",
    ):
        assert part in message
    assert caught.value.exit_code == 3
    assert "\n" not in message


def test_unreachable_hub_says_what_to_do(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsNotFoundError, match=r"cannot be reached.*--model PATH"):
        resolve_model(OWNED, cache=tmp_path / "hub")


def test_only_one_precision_and_no_single_file_checkpoint_is_fetched():
    names = [
        "model_index.json", "sd_xl_base_1.0.safetensors", "README.md", "unet/config.json", "unet/model.onnx",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors", "vae_1_0/config.json", "text_encoder/flax_model.msgpack",
        "vae_1_0/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt", "text_encoder/model.bin",
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model.safetensors.index.json",
    ]  # fmt: skip
    half, full = files_to_fetch(names, half=True), files_to_fetch(names, half=False)
    small = {"model_index.json", "unet/config.json", "tokenizer/merges.txt"}
    shards = {"text_encoder/model-00001-of-00002.safetensors", "text_encoder/model.safetensors.index.json"}
    shared = small | shards | {"vae/diffusion_pytorch_model.safetensors"}
    assert set(half) == shared | {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert set(full) == shared | {"unet/diffusion_pytorch_model.safetensors"}
