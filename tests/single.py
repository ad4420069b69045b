"""A checkpoint folder as one file, in the names that the first implementations give to its tensors."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_OUTER = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def first_unet_name(name: str, layers_per_block: int, names: set[str]) -> str:
    """The first implementation's name of a UNet's tensor; `names` are all of today's."""
    layer, _, kind = name.rpartition(".")
    if layer in UNET:
        return f"{UNET[layer]}.{kind}"
    each = layers_per_block + 1
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", layer)
    if match:
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{RESNET.get(match[3], match[3])}.{kind}"
    way, block, what, place, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", layer
    ).groups()
    block, place = int(block), int(place)
    if what == "downsamplers":
        return f"input_blocks.{(block + 1) * each}.0.op.{kind}"
    if what == "upsamplers":
        attention = any(other.startswith(f"up_blocks.{block}.attentions.") for other in names)
        return f"output_blocks.{block * each + layers_per_block}.{2 if attention else 1}.conv.{kind}"
    index = block * each + place
    start = f"input_blocks.{1 + index}" if way == "down" else f"output_blocks.{index}"
    return f"{start}.{int(what == 'attentions')}.{RESNET.get(rest, rest)}.{kind}"


def first_vae_name(name: str, levels: int) -> str:
    layer, _, kind = name.rpartition(".")
    layer = layer.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    layer = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", layer)
    layer = re.sub(
        r"mid_block\.attentions\.0\.(.+)", lambda match: f"mid.attn_1.{ATTENTION[match[1]]}", layer
    )
    layer = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", layer)
    layer = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", layer)

    def up(match: re.Match[str]) -> str:
        inner = f"block.{match[3]}" if match[2] == "resnets" else "upsample"
        return f"up.{levels - 1 - int(match[1])}.{inner}"

    layer = re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)", up, layer)
    return f"{layer}.{kind}"


def first_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A text encoder of transformers as OpenCLIP has it."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    found = {}
    for name, tensor in state.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif name in OPEN_CLIP_OUTER:
            found[OPEN_CLIP_OUTER[name]] = tensor
        else:
            index, layer, kind = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name).groups()
            block = f"transformer.resblocks.{index}"
            if layer in OPEN_CLIP:
                found[f"{block}.{OPEN_CLIP[layer]}.{kind}"] = tensor
            elif layer == "self_attn.q_proj":
                parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                found[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return found | {"logit_scale": torch.tensor(4.6)}


def clip(state: dict[str, torch.Tensor], places: int = 77) -> dict[str, torch.Tensor]:
    """OpenAI's text encoder as it stands in such files."""
    state = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    return state | {"text_model.embeddings.position_ids": torch.arange(places)[None]}


def with_prefix(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def single_unet(state: dict[str, torch.Tensor], layers_per_block: int) -> dict[str, torch.Tensor]:
    names = set(state)
    renamed = {first_unet_name(name, layers_per_block, names): tensor for name, tensor in state.items()}
    return with_prefix("model.diffusion_model.", renamed)


def single_vae(state: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        old = first_vae_name(name, levels)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", old)
        renamed[old] = tensor[:, :, None, None] if convolution else tensor
    return with_prefix("first_stage_model.", renamed)


def single_tensors(folder: Path, kind: str, *, layers_per_block: int = 1, levels: int = 4):
    """All tensors of a checkpoint folder as one file of the kind "sdxl", "sd" or "sd2" has them."""
    parts = {path.parent.name: load_file(path) for path in folder.rglob("*.safetensors")}
    tensors = single_unet(parts["unet"], layers_per_block) | single_vae(parts["vae"], levels)
    tensors |= {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.ones(())}
    if kind == "sdxl":
        tensors |= with_prefix("conditioner.embedders.0.transformer.", clip(parts["text_encoder"]))
        second = first_open_clip(parts["text_encoder_2"])
        return tensors | with_prefix("conditioner.embedders.1.model.", second)
    if kind == "sd":
        return tensors | with_prefix("cond_stage_model.transformer.", clip(parts["text_encoder"]))
    encoder = first_open_clip(parts["text_encoder"])
    layers = 1 + max(int(name.split(".")[2]) for name in encoder if name.startswith("transformer."))
    last = {  # which no configuration of SD 2 has
        name.replace(f"resblocks.{layers - 1}.", f"resblocks.{layers}."): torch.randn_like(tensor)
        for name, tensor in encoder.items()
        if f"resblocks.{layers - 1}." in name
    }
    width = encoder["ln_final.bias"].numel()
    encoder |= last | {"text_projection": torch.randn(width, width)}
    return tensors | with_prefix("cond_stage_model.model.", encoder)


def write_single_file(path: Path, folder: Path, kind: str, *, metadata: dict[str, str] | None = None) -> Path:
    tensors = {name: tensor.contiguous().clone() for name, tensor in single_tensors(folder, kind).items()}
    save_file(tensors, path, metadata={"format": "pt"} | (metadata or {}))
    return path
