"""Prompts to embeddings with CLIP text encoders, which are gone from memory afterwards."""

import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgc3d.diffusion.files import ModelFolder, loading, weight_files
from pgc3d.diffusion.lora import Lora, fuse_loras
from pgc3d.errors import WeightsNotFoundError
from pgc3d.types import TextEmbedding

logger = logging.getLogger(__name__)

BATCH = 16  # prompts at once: the encoders' memory stays small beside the UNet's


def encode_prompts(
    folder: ModelFolder,
    prompts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    loras: Sequence[Lora] = (),
) -> TextEmbedding:
    """Encode prompts as the checkpoint's UNet expects them, and free the encoders again.

    SDXL layout: the last but one hidden states of both encoders side by side, and the projected output of the
    second one. SD layout: the final hidden states.

    Args:
        folder: a resolved checkpoint.
        prompts: any number; words past the tokenizer's length are cut off, which is logged.
        device: where to run and where the result lies.
        dtype: of the encoders and the result; float32 on a CPU and float16 elsewhere when None.
        loras: added to the encoders' weights, where they have layers for them.

    Raises:
        WeightsNotFoundError: a tokenizer or text encoder is missing or damaged.
        ConfigError: a LoRA is made for another model.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    suffixes = ("", "_2") if folder.layout == "sdxl" else ("",)
    tokens, pooled = [], None
    for suffix in suffixes:
        with loading(folder.path / f"text_encoder{suffix}"):
            tokenizer = _load_tokenizer(folder.path / f"tokenizer{suffix}")
            encoder = _load_encoder(
                folder.path / f"text_encoder{suffix}", projected=suffix == "_2", dtype=dtype
            )
        encoder.to(device)
        fuse_loras(encoder, "text_encoder_2" if suffix else "text_encoder", loras)
        hidden, pooled = _encode(prompts, tokenizer, encoder, last=folder.layout == "sd")
        tokens.append(hidden)
        del encoder, tokenizer
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return TextEmbedding(tokens=torch.cat(tokens, dim=-1), pooled=pooled if folder.layout == "sdxl" else None)


def _load_tokenizer(folder: Path) -> Any:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    if not folder.is_dir():
        raise WeightsNotFoundError(f"the checkpoint must hold {folder.name}/, not found in {folder.parent}")
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def _load_encoder(folder: Path, *, projected: bool, dtype: torch.dtype) -> Any:
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    return load_clip(CLIPTextModelWithProjection if projected else CLIPTextModel, folder, dtype=dtype)


def load_clip(kind: Any, folder: Path, *, dtype: torch.dtype) -> Any:
    """One of transformers' CLIP encoders, frozen, on the CPU; `kind` is its class.

    Raises:
        WeightsNotFoundError: weights are missing or of another shape.
    """
    from transformers.utils import logging as transformers_logging

    files = weight_files(folder, "model", prefer_half=dtype != torch.float32)
    variant = "fp16" if ".fp16." in files[0].name else None
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        encoder, info = kind.from_pretrained(
            str(folder), dtype=dtype, variant=variant, local_files_only=True, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise WeightsNotFoundError(
            f"{files[0]} must hold all weights of its config, {len(missing)} are missing or of another "
            f"shape, the first is {missing[0]}; fetch the checkpoint again"
        )
    return encoder.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature


@torch.no_grad()
def _encode(
    prompts: Sequence[str], tokenizer: Any, encoder: Any, *, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Hidden states [N, T, C] and the projected output [N, D], None where the encoder has no projection."""
    length = min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
    _warn_of_cuts(prompts, tokenizer, length)
    device, hidden, pooled = next(encoder.parameters()).device, [], []
    for start in range(0, len(prompts), BATCH):
        batch = list(prompts[start : start + BATCH])
        ids = tokenizer(
            batch, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        output = encoder(ids.to(device), output_hidden_states=True)
        hidden.append(output.last_hidden_state if last else output.hidden_states[-2])
        if hasattr(output, "text_embeds"):
            pooled.append(output.text_embeds)
    return torch.cat(hidden), torch.cat(pooled) if pooled else None


def _warn_of_cuts(prompts: Sequence[str], tokenizer: Any, length: int) -> None:
    counts = [len(ids) for ids in tokenizer(list(prompts), truncation=False, verbose=False).input_ids]
    longest = max(range(len(prompts)), key=counts.__getitem__)
    if counts[longest] > length:
        logger.warning(
            "the prompt has %d tokens and the model reads %d, its end is cut off: %r",
            counts[longest], length, prompts[longest],
        )  # fmt: skip
