import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import _script, write_tiny_sd, write_tiny_sdxl

from pgc3d.diffusion.lora import fuse_loras, parse_lora, read_lora
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.errors import ConfigError, WeightsNotFoundError

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
STRIDED = "down_blocks.0.downsamplers.0.conv"
LAYERS = (LINEAR, OUT, CONV, STRIDED)
FIRST_NAMES = {
    LINEAR: "middle_block_1_transformer_blocks_0_attn1_to_q",
    OUT: "input_blocks_3_1_transformer_blocks_0_attn2_to_out_0",
    CONV: "input_blocks_1_0_in_layers_2",
    STRIDED: "input_blocks_2_0_op",
}
RANK, ALPHA = 3, 6.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    return {"sdxl": write_tiny_sdxl(root / "sdxl"), "sd": write_tiny_sd(root / "sd")}


@pytest.fixture(scope="module")
def unet(folders):
    return load_latent_diffusion(folders["sdxl"]).unet


def factors(weight, seed):
    """(down, up) as the usual trainers shape them: a convolution's kernel is in the first one."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, *weight.shape[1:], generator=generator)
    up = torch.randn(weight.shape[0], RANK, *(1 for _ in weight.shape[2:]), generator=generator)
    return 0.1 * down, 0.1 * up


def of_unet(unet, seed=0):
    return {name: factors(unet.get_submodule(name).weight, seed + i) for i, name in enumerate(LAYERS)}


def kohya(layers, names=None):
    tensors = {}
    for name, (down, up) in layers.items():
        flat = "lora_unet_" + (names[name] if names else name.replace(".", "_"))
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        tensors[f"{flat}.alpha"] = torch.tensor(ALPHA)
    return tensors, {}


def first_implementation(layers):
    return kohya(layers, FIRST_NAMES)


def peft(layers):
    tensors = {}
    for name, (down, up) in layers.items():
        tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    settings = {"unet.r": RANK, "unet.lora_alpha": ALPHA, "unet.use_dora": False, "unet.alpha_pattern": {}}
    return tensors, {"lora_adapter_metadata": json.dumps(settings)}


def old_diffusers(layers):
    """No alpha: the rank stands for it."""
    tensors = {}
    for name, (down, up) in layers.items():
        layer, attention, place = name.partition(".to_")
        spelled = f"{layer}.processor.to_{place.removesuffix('.0')}_lora" if attention else f"{layer}.lora"
        tensors |= {
            f"unet.{spelled}.down.weight": down,
            f"unet.{spelled}.up.weight": (ALPHA / RANK) * up,
        }
    return tensors, {}


SPELLINGS = (kohya, first_implementation, peft, old_diffusers)


def write(path, layers, spelling=kohya):
    tensors, metadata = spelling(layers)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def loaded(folder, *texts):
    source = resolve_model(folder)
    return load_latent_diffusion(source, loras=[read_lora(str(text), source.layout) for text in texts]).unet


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_fused_layer_equals_the_low_rank_path_beside_it(tmp_path, folders, unet, spelling):
    layers = of_unet(unet)
    fused = loaded(folders["sdxl"], f"{write(tmp_path / 'style.safetensors', layers, spelling)}:0.5")
    for name, (down, up) in layers.items():
        before, after = unet.get_submodule(name), fused.get_submodule(name)
        if down.ndim == 2:
            x = torch.randn(5, down.shape[1])
            low = x @ down.T @ up.T
        else:
            x = torch.randn(2, down.shape[1], 8, 8)
            low = torch.conv2d(torch.conv2d(x, down, stride=before.stride, padding=before.padding), up)
        torch.testing.assert_close(after(x), before(x) + 0.5 * ALPHA / RANK * low, rtol=1e-4, atol=1e-5)
        assert low.abs().max() > 0.01
    changed = {f"{name}.weight" for name in layers}
    for name, parameter in fused.named_parameters():
        assert name in changed or torch.equal(parameter, unet.get_parameter(name)), name


def test_scale_zero_changes_nothing_and_two_files_add(tmp_path, folders, unet):
    first = write(tmp_path / "first.safetensors", of_unet(unet))
    second = write(tmp_path / "second.safetensors", of_unet(unet, seed=9), peft)
    plain = dict(unet.named_parameters())
    off = dict(loaded(folders["sdxl"], f"{first}:0").named_parameters())
    assert all(torch.equal(off[name], plain[name]) for name in plain)
    one, other, both = (
        dict(loaded(folders["sdxl"], *files).named_parameters())
        for files in ([f"{first}:0.7"], [f"{second}:-1.5"], [f"{first}:0.7", f"{second}:-1.5"])
    )
    for name, weight in plain.items():
        torch.testing.assert_close(both[name] - weight, (one[name] - weight) + (other[name] - weight))


def test_a_fused_model_is_the_checkpoint_with_changed_weights(tmp_path, folders):
    """UNet and both text encoders, by what they answer."""
    names = {
        "lora_te1_": ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj"),
        "lora_te2_": ("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1"),
    }
    shutil.copytree(folders["sdxl"], tmp_path / "changed")
    tensors = {}
    for seed, (prefix, (part, name)) in enumerate(names.items()):
        file = tmp_path / "changed" / part / "model.safetensors"
        state = load_file(file)
        # transformers writes the first encoder without the prefix, most files have it.
        key = next(key for key in state if key.endswith(f"{name.removeprefix('text_model.')}.weight"))
        down, up = factors(state[key], seed)
        flat = prefix + name.replace(".", "_")
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        save_file(state | {key: state[key] + 2.0 * up @ down}, file, metadata={"format": "pt"})
    save_file(tensors, tmp_path / "text.safetensors")
    lora = read_lora(f"{tmp_path / 'text.safetensors'}:2", "sdxl")
    found = encode_prompts(resolve_model(folders["sdxl"]), ["a chair"], loras=[lora])
    plain = encode_prompts(resolve_model(folders["sdxl"]), ["a chair"])
    expected = encode_prompts(resolve_model(tmp_path / "changed"), ["a chair"])
    torch.testing.assert_close(found.tokens, expected.tokens)
    torch.testing.assert_close(found.pooled, expected.pooled)
    width = plain.tokens.shape[-1] // 2
    for half in (found.tokens[..., :width] - plain.tokens[..., :width], found.pooled - plain.pooled):
        assert half.abs().max() > 1e-3


def test_first_names_cover_sdxl_at_full_size_and_agree_with_the_library():
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from pgc3d.diffusion.first_names import flat_unet_layer

    with torch.device("meta"):
        unet = UNet2DConditionModel(**_script("make_random_sdxl").unet_config(full_size=True))
    layers = {
        name.replace(".", "_")
        for name, layer in unet.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    attention, rest = first_names_of_sdxl()
    renamed = {name: flat_unet_layer(name, unet.config.layers_per_block) for name in (*attention, *rest)}
    assert set(renamed.values()) == layers
    assert len(renamed) == len(layers)

    file = {
        f"lora_unet_{name}.lora_{role}.weight": torch.ones(1, 1)
        for name in attention
        for role in ("down", "up")
    }
    config = SimpleNamespace(layers_per_block=2)
    theirs, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(file, unet_config=config)
    spelled = (key.removeprefix("unet.").replace(".processor", "") for key in theirs)
    plain = {key.replace("to_out_lora", "to_out.0_lora").replace("_lora", ".lora") for key in spelled}
    assert {key.partition(".lora")[0].replace(".", "_") for key in plain} == {renamed[n] for n in attention}


def first_names_of_sdxl():
    """Every layer of SDXL's UNet by its first name: those in transformers, and the others."""
    depths = {"input_blocks_4_1": 2, "input_blocks_5_1": 2, "input_blocks_7_1": 10, "input_blocks_8_1": 10}
    depths |= {f"output_blocks_{i}_1": 10 if i < 3 else 2 for i in range(6)} | {"middle_block_1": 10}
    attention = []
    for block, depth in depths.items():
        attention += [f"{block}_proj_in", f"{block}_proj_out"]
        for i in range(depth):
            inner = [f"attn{a}_to_{part}" for a in (1, 2) for part in ("q", "k", "v", "out_0")]
            inner += ["ff_net_0_proj", "ff_net_2"]
            attention += [f"{block}_transformer_blocks_{i}_{name}" for name in inner]
    resnets = [f"input_blocks_{i}_0" for i in (1, 2, 4, 5, 7, 8)] + ["middle_block_0", "middle_block_2"]
    resnets += [f"output_blocks_{i}_0" for i in range(9)]
    rest = [
        f"{block}_{name}" for block in resnets for name in ("in_layers_2", "emb_layers_1", "out_layers_3")
    ]
    rest += [
        f"{b}_skip_connection"
        for b in resnets
        if "output" in b or b in ("input_blocks_4_0", "input_blocks_7_0")
    ]
    rest += ["input_blocks_3_0_op", "input_blocks_6_0_op", "output_blocks_2_2_conv", "output_blocks_5_2_conv"]
    rest += ["input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2"]
    return attention, rest


# DoRA


def kohya_dora(layers, weights, magnitudes):
    tensors, _ = kohya(layers)
    for name, size in magnitudes.items():
        shape = (-1, *(1 for _ in weights[name].shape[1:]))
        tensors[f"lora_unet_{name.replace('.', '_')}.dora_scale"] = size.reshape(shape)
    return tensors, {}


def kohya_dora_of_inputs(layers, weights, magnitudes):
    tensors, _ = kohya(layers)
    for name, size in magnitudes.items():
        shape = (1, -1, *(1 for _ in weights[name].shape[2:]))
        tensors[f"lora_unet_{name.replace('.', '_')}.dora_scale"] = size.reshape(shape)
    return tensors, {}


def peft_dora(layers, weights, magnitudes):
    tensors, header = peft(layers)
    for name, size in magnitudes.items():
        shape = (-1,) if weights[name].ndim == 2 else (1, -1, 1, 1)
        tensors[f"unet.{name}.lora_magnitude_vector"] = size.reshape(shape)
    settings = json.loads(header["lora_adapter_metadata"]) | {"unet.use_dora": True}
    return tensors, {"lora_adapter_metadata": json.dumps(settings)}


@pytest.mark.parametrize(
    ("spelling", "axis"),
    [(kohya_dora, 0), (kohya_dora_of_inputs, 1), (peft_dora, 0)],
    ids=["kohya", "kohya-inputs", "peft"],
)
def test_decomposed_layers_have_the_norm_and_the_direction_of_the_formula(
    tmp_path, folders, unet, spelling, axis
):
    layers = of_unet(unet)
    weights = {name: unet.get_submodule(name).weight.double() for name in layers}
    sizes = {
        name: torch.rand(w.shape[axis], generator=torch.Generator().manual_seed(1)) + 0.5
        for name, w in weights.items()
    }
    path = write(tmp_path / "dora.safetensors", layers, lambda found: spelling(found, weights, sizes))
    whole, half, none = (loaded(folders["sdxl"], f"{path}:{scale}") for scale in (1, 0.5, 0))
    for name, (down, up) in layers.items():
        low = (up.double().flatten(1) @ down.double().flatten(1)).reshape(weights[name].shape)
        changed = (weights[name] + ALPHA / RANK * low).movedim(axis, 0)
        norm = changed.flatten(1).norm(dim=1)
        expected = torch.einsum("i,i...->i...", sizes[name].double() / norm, changed).movedim(0, axis)
        found = {
            s: net.get_submodule(name).weight.double() for s, net in ((1, whole), (0.5, half), (0, none))
        }
        torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=1e-6)
        norms = found[1].movedim(axis, 0).flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, sizes[name].double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[0.5], 0.5 * (found[0] + found[1]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[0], weights[name], rtol=1e-6, atol=1e-7)


def test_magnitudes_of_another_layer_are_refused(tmp_path, unet):
    file = tmp_path / "odd.safetensors"
    tensors, _ = kohya(of_unet(unet))
    flat = f"lora_unet_{CONV.replace('.', '_')}"
    save_file(tensors | {f"{flat}.dora_scale": torch.ones(5, 1, 1, 1)}, file)
    with pytest.raises(ConfigError, match=r"got 5 magnitudes of .* for a layer of"):
        fuse_loras(unet, "unet", [read_lora(str(file), "sdxl")])


# What a user can get wrong.


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a:0.5", "a", 0.5),
        ("b/c:-1", "b/c", -1.0),
        ("d:e", "d:e", 1.0),
    ],
)
def test_file_and_scale(text, path, scale):
    assert parse_lora(text) == (Path(path), scale)


def test_missing_file_and_pickle_are_refused(tmp_path):
    with pytest.raises(
        WeightsNotFoundError, match=r"--lora must be a file, got .*none\.safetensors, which does not exist"
    ):
        read_lora(f"{tmp_path / 'none.safetensors'}:0.5", "sdxl")
    for name in ("style.pt", "style.ckpt", "style.bin"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
        with pytest.raises(WeightsNotFoundError, match=rf"the pickle .*{name}, which is never loaded"):
            read_lora(str(tmp_path / name), "sdxl")
    (tmp_path / "style.pt").rename(tmp_path / "renamed.safetensors")
    with pytest.raises(WeightsNotFoundError, match=r"renamed\.safetensors must be a whole safetensors file"):
        read_lora(str(tmp_path / "renamed.safetensors"), "sdxl")


ONE = torch.ones(2, 2)
MISFITS = {
    "not a LoRA": ({"conv_in.weight": ONE}, "got the key conv_in.weight"),
    "LyCORIS": ({"lora_unet_conv_in.hada_w1_a": ONE}, "got the key lora_unet_conv_in.hada_w1_a"),
    "tucker": ({"lora_unet_conv_in.lora_mid.weight": ONE}, "got the key lora_unet_conv_in.lora_mid.weight"),
    "DoRA": ({"lora_unet_conv_in.dora_scale": ONE}, "got only lora_unet_conv_in.dora_scale"),
    "another family": ({"transformer.x.lora_A.weight": ONE}, "got the key transformer.x.lora_A.weight"),
    "half a layer": (
        {"unet.conv_in.lora_A.weight": ONE},
        "both factors of a layer, got only unet.conv_in.lora_A",
    ),
    "ranks differ": (
        {"unet.conv_in.lora_A.weight": ONE, "unet.conv_in.lora_B.weight": torch.ones(2, 3)},
        "factors of one rank, got two for unet.conv_in.lora_",
    ),
    "nothing": ({}, "got an empty file"),
}


@pytest.mark.parametrize(("tensors", "line"), MISFITS.values(), ids=MISFITS)
def test_file_that_is_no_plain_lora_is_one_line(tmp_path, tensors, line):
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(ConfigError) as caught:
        read_lora(str(tmp_path / "odd.safetensors"), "sdxl")
    assert line in str(caught.value)
    assert "odd.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("unet.use_rslora", r"must be a plain one or DoRA, got unet\.use_rslora = True"),
        ("unet.use_dora", r"must hold the magnitudes of its header, but unet\.conv_in\.lora_A"),
    ],
)
def test_variants_that_the_header_names_are_refused(tmp_path, setting, line):
    settings = {"lora_adapter_metadata": json.dumps({setting: True})}
    tensors = {"unet.conv_in.lora_A.weight": ONE, "unet.conv_in.lora_B.weight": ONE.clone()}
    save_file(tensors, tmp_path / "dora.safetensors", metadata=settings)
    with pytest.raises(ConfigError, match=line):
        read_lora(str(tmp_path / "dora.safetensors"), "sdxl")


@pytest.mark.parametrize("layer", ["lora_unet_down_blocks_7_conv", "lora_unet_input_blocks_9_1_proj_in"])
def test_layer_that_the_model_has_not_is_named(tmp_path, unet, layer):
    file = tmp_path / "other.safetensors"
    save_file({f"{layer}.lora_down.weight": ONE, f"{layer}.lora_up.weight": ONE.clone()}, file)
    with pytest.raises(ConfigError, match=rf"other\.safetensors must fit the model, got {layer}\.lora_down"):
        fuse_loras(unet, "unet", [read_lora(str(file), "sdxl")])


def test_layer_of_another_size_is_named(tmp_path, unet):
    file = tmp_path / "wide.safetensors"
    save_file({"unet.conv_in.lora_A.weight": ONE, "unet.conv_in.lora_B.weight": ONE.clone()}, file)
    with pytest.raises(ConfigError, match=r"unet\.conv_in\.lora_A\.weight for a layer of another size"):
        fuse_loras(unet, "unet", [read_lora(str(file), "sdxl")])


def test_second_text_encoder_needs_sdxl(tmp_path):
    file, layer = tmp_path / "xl.safetensors", "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    save_file({f"{layer}.lora_down.weight": ONE, f"{layer}.lora_up.weight": ONE.clone()}, file)
    with pytest.raises(ConfigError, match=rf"must fit the SD layout, got {layer}"):
        read_lora(str(file), "sd")


def test_half_precision_weights_stay_half(tmp_path, folders, unet):
    file = write(tmp_path / "style.safetensors", of_unet(unet))
    source = resolve_model(folders["sdxl"])
    half = load_latent_diffusion(source, dtype=torch.float16, loras=[read_lora(str(file), "sdxl")]).unet
    exact = loaded(folders["sdxl"], file)
    for name in LAYERS:
        weight = half.get_submodule(name).weight
        assert weight.dtype == torch.float16
        torch.testing.assert_close(weight.float(), exact.get_submodule(name).weight, rtol=2e-3, atol=1e-4)
