"""Layer names of the original implementations, mapped to those of diffusers and transformers.

The original implementations are those of latent diffusion (UNet, VAE) and of OpenCLIP (the larger text
encoders). Their names are used in single-file checkpoints and in many LoRA files.
"""

import re

OUTER = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
INNER = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OPEN_CLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPEN_CLIP_OUTER = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",  # transposed
}


def unet_layer(name: str, layers_per_block: int) -> str | None:
    """The diffusers name of a UNet's layer, None for an unknown original name."""
    if name in OUTER:
        return OUTER[name]
    middle = re.fullmatch(r"middle_block\.([012])\.(.+)", name)
    if middle is not None:
        return f"mid_block.{MIDDLE[middle[1]]}.{INNER.get(middle[2], middle[2])}"
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", name)
    if match is None:
        return None
    each, rest = layers_per_block + 1, INNER.get(match[4], match[4])
    kind = ("resnets", "attentions", "upsamplers")[min(int(match[3]), 2)]
    index = int(match[2])
    if match[1] == "input":
        block, place = divmod(index - 1, each)  # block 0 is the input convolution
        if rest == "op":
            return f"down_blocks.{block}.downsamplers.0.conv"
        return f"down_blocks.{block}.{kind}.{place}.{rest}"
    block, place = divmod(index, each)
    if rest == "conv":
        return f"up_blocks.{block}.upsamplers.0.conv"
    return f"up_blocks.{block}.{kind}.{place}.{rest}"


def flat_unet_layer(name: str, layers_per_block: int) -> str:
    """As `unet_layer`, with `_` for every dot; a diffusers name is returned unchanged."""
    dotted = re.sub(r"^(input_blocks|output_blocks)_(\d+)_(\d+)_", r"\1.\2.\3.", name)
    dotted = re.sub(r"^middle_block_(\d)_", r"middle_block.\1.", dotted)
    for known in (*OUTER, *INNER):
        if dotted.endswith(flat := known.replace(".", "_")) and dotted.removesuffix(flat)[-1:] in ("", "."):
            dotted = dotted.removesuffix(flat) + known
    return (unet_layer(dotted, layers_per_block) or name).replace(".", "_")


def vae_layer(name: str, levels: int) -> str | None:
    """The diffusers name of a VAE's layer, None for an unknown one; `levels` is its number of resolutions."""
    if re.fullmatch(r"(post_)?quant_conv|(en|de)coder\.conv_(in|out)", name):
        return name
    match = re.fullmatch(r"((?:en|de)coder)\.(.+)", name)
    if match is None:
        return None
    half, inner = match[1], match[2].replace("nin_shortcut", "conv_shortcut")
    if inner == "norm_out":
        return f"{half}.conv_norm_out"
    if matched := re.fullmatch(r"mid\.block_([12])\.(.+)", inner):
        return f"{half}.mid_block.resnets.{int(matched[1]) - 1}.{matched[2]}"
    if (matched := re.fullmatch(r"mid\.attn_1\.(.+)", inner)) and matched[1] in VAE_ATTENTION:
        return f"{half}.mid_block.attentions.0.{VAE_ATTENTION[matched[1]]}"
    if matched := re.fullmatch(r"(down|up)\.(\d+)\.(?:block\.(\d+)\.(.+)|(?:down|up)sample\.(conv))", inner):
        way, level = matched[1], int(matched[2])
        block = f"{half}.{way}_blocks.{level if way == 'down' else levels - 1 - level}"
        if matched[5]:
            return f"{block}.{way}samplers.0.conv"
        return f"{block}.resnets.{matched[3]}.{matched[4]}"
    return None


def open_clip_layer(name: str) -> str | None:
    """The transformers name of a tensor of an OpenCLIP text encoder, None for an unknown one.

    The weights (or biases) of query, key and value are one tensor there, `in_proj`, which keeps that name.
    """
    if name in OPEN_CLIP_OUTER:
        return OPEN_CLIP_OUTER[name]
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    if match is None:
        return None
    layer, inner = f"text_model.encoder.layers.{match[1]}", match[2]
    if joined := re.fullmatch(r"attn\.in_proj_(weight|bias)", inner):
        return f"{layer}.self_attn.in_proj.{joined[1]}"
    known, _, kind = inner.rpartition(".")
    return f"{layer}.{OPEN_CLIP[known]}.{kind}" if known in OPEN_CLIP else None
