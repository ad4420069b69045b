"""Embeddings of prompts by CLIP text encoders, which are loaded for the call only."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.diffusion.files import ModelFolder, loading, read_json, weight_files
from pgc3d.diffusion.lora import Lora, fuse_loras
from pgc3d.diffusion.single_file import read_part
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.memory import release_memory
from pgc3d.prompt_weights import Part, parse_prompt, token_weights
from pgc3d.types import TextEmbedding

logger = logging.getLogger(__name__)

BATCH = 16  # prompts at a time: activations of the encoders stay small compared with the UNet's


def encode_prompts(
    folder: ModelFolder,
    prompts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    loras: Sequence[Lora] = (),
    empty_zeros: bool = False,
) -> TextEmbedding:
    """The embeddings of prompts in the format of the checkpoint's UNet; the encoders are freed afterwards.

    SDXL layout: the penultimate hidden states of both encoders, concatenated, and the projected output of the
    second one. SD layout: the final hidden states.

    Args:
        folder: a resolved checkpoint.
        prompts: any number, with weights as in `prompt_weights`; tokens beyond the tokenizer's length are cut
            off with a warning in the log.
        device: of the encoders and the result.
        dtype: of the encoders and the result; float32 on a CPU and float16 elsewhere when None.
        loras: their layers of the text encoders are added to the weights.
        empty_zeros: whether the embeddings of empty prompts are replaced by zeros.

    Raises:
        WeightsNotFoundError: a tokenizer or text encoder is missing or damaged.
        ConfigError: a LoRA is made for another model.
        InputError: a weight in a prompt is not valid.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    suffixes = ("", "_2") if folder.layout == "sdxl" else ("",)
    tokens, pooled = [], None
    for suffix in suffixes:
        with loading(folder.path / f"text_encoder{suffix}"):
            tokenizer = _load_tokenizer(folder.path / f"tokenizer{suffix}")
            encoder = _load_encoder(
                folder.path / f"text_encoder{suffix}", projected=suffix == "_2", dtype=dtype, file=folder.file
            )
        encoder.to(device)
        fuse_loras(encoder, "text_encoder_2" if suffix else "text_encoder", loras)
        hidden, pooled = _encode(prompts, tokenizer, encoder, last=folder.layout == "sd")
        tokens.append(hidden)
        del encoder, tokenizer
    release_memory(device)
    embeddings, pooled = torch.cat(tokens, dim=-1), pooled if folder.layout == "sdxl" else None
    if empty_zeros:
        empty = torch.tensor([not prompt for prompt in prompts], device=embeddings.device)
        embeddings = embeddings.masked_fill(empty[:, None, None], 0.0)
        pooled = None if pooled is None else pooled.masked_fill(empty[:, None], 0.0)
    return TextEmbedding(tokens=embeddings, pooled=pooled)


def _load_tokenizer(folder: Path) -> Any:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    if not folder.is_dir():
        raise WeightsNotFoundError(f"the checkpoint must hold {folder.name}/, got none in {folder.parent}")
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def _load_encoder(folder: Path, *, projected: bool, dtype: torch.dtype, file: Path | None) -> Any:
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return load_clip(kind, folder, dtype=dtype, file=file)


def load_clip(kind: Any, folder: Path, *, dtype: torch.dtype, file: Path | None = None) -> Any:
    """One of transformers' CLIP encoders, frozen, on the CPU.

    Args:
        kind: its class.
        folder: with its configuration, and its weights unless they are in `file`.
        dtype: of its weights.
        file: a single file with all weights of its model.

    Raises:
        WeightsNotFoundError: weights are missing or of another shape.
        ConfigError: there are weights that the encoder has not.
    """
    if file is None:
        source = weight_files(folder, "model", prefer_half=dtype != torch.float32)[0]
        variant = "fp16" if ".fp16." in source.name else None
        where: dict[str, Any] = {"variant": variant, "local_files_only": True, "use_safetensors": True}
        place: str | None = str(folder)
    else:
        source, place = file, None
        state = dict(read_part(file, folder.name, read_json(folder / "config.json"), "cpu"))
        where = {"config": kind.config_class.from_pretrained(str(folder)), "state_dict": state}
    with quiet_transformers():
        encoder, info = kind.from_pretrained(place, dtype=dtype, output_loading_info=True, **where)
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise WeightsNotFoundError(
            f"{source} must hold all weights of its config, got {len(missing)} missing or of another "
            f"shape, the first is {missing[0]}; fetch the checkpoint again"
        )
    # Older files also hold the position indices, and both encoders of CLIP.
    unknown = sorted(name for name in info["unexpected_keys"] if not _UNUSED.search(name))
    if unknown:
        raise ConfigError(
            f"{source} must hold the weights of a {kind.__name__} with its config.json and no others, "
            f"got {len(unknown)} unknown, the first is {unknown[0]}; it is another kind of network"
        )
    return encoder.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature


_UNUSED = re.compile(
    r"(^|\.)(position_ids|logit_scale|text_projection\.weight)$|^(vision_model|visual_projection)\."
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars and warnings of transformers; the caller raises errors instead."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@torch.no_grad()
def _encode(
    prompts: Sequence[str], tokenizer: Any, encoder: Any, *, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Hidden states [N, T, C] and the projected output [N, D], None where the encoder has no projection."""
    length = min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
    parts = [parse_prompt(prompt) for prompt in prompts]
    prompts = ["".join(part.text for part in own) for own in parts]
    if any(part.weight != 1.0 for own in parts for part in own):
        hidden, pooled = _encode_plain([*prompts, ""], tokenizer, encoder, length, last=last)
        weights = torch.tensor([_weights(own, tokenizer, length) for own in parts])
        weighted = weigh(hidden[:-1], hidden[-1:], weights.to(hidden))
        return weighted, None if pooled is None else pooled[:-1]
    return _encode_plain(prompts, tokenizer, encoder, length, last=last)


def weigh(
    hidden: Float[Tensor, "N T C"], empty: Float[Tensor, "1 T C"], weights: Float[Tensor, "N T"]
) -> Float[Tensor, "N T C"]:
    """Embeddings scaled about those of the empty prompt; those of weight 1 stay as they are.

    Args:
        hidden: of the tokens.
        empty: of the empty prompt's tokens at the same places.
        weights: of the tokens.
    """
    scaled = empty + weights[..., None] * (hidden - empty)
    return torch.where(weights[..., None] == 1.0, hidden, scaled)


def _weights(parts: Sequence[Part], tokenizer: Any, length: int) -> list[float]:
    """The weight of each of the `length` tokens of a prompt."""
    text = "".join(part.text for part in parts)
    found = tokenizer(
        text, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True
    )
    return token_weights(parts, found.offset_mapping)


def _encode_plain(
    prompts: Sequence[str], tokenizer: Any, encoder: Any, length: int, *, last: bool
) -> tuple[Tensor, Tensor | None]:
    """As `_encode`, of prompts without weights."""
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
            "the prompt has %d tokens, more than the model's %d; its end is cut off: %r",
            counts[longest], length, prompts[longest],
        )  # fmt: skip
