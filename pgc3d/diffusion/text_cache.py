"""Embeddings of prompts on the disk, so that a second run with them loads no text encoder.

A file is named by a hash of all that its content depends on: the texts, the encoders' files, the LoRAs, the
precision, the kind of device, the versions of this package and of torch. What cannot be read is made again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pgc3d import __version__
from pgc3d.devices import reading_device
from pgc3d.diffusion.files import ModelFolder
from pgc3d.diffusion.hub import cache_folder
from pgc3d.diffusion.lora import Lora
from pgc3d.disk import replace_file
from pgc3d.errors import Pgc3dError
from pgc3d.types import TextEmbedding

logger = logging.getLogger(__name__)

LARGEST = 32_000_000  # bytes of an embedding that is kept; SDXL's four views have 2 MB
KEPT = 100  # files, of which the oldest are removed
PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def cached(
    make: Callable[[], TextEmbedding],
    folder: ModelFolder,
    texts: Sequence[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    loras: Sequence[Lora] = (),
    empty_zeros: bool = False,
) -> TextEmbedding:
    """The embedding that `make` returns for these arguments, from the disk where it was made before.

    Args:
        make: encodes the texts; its result is in `dtype`, on `device`.
        folder: the checkpoint.
        texts: all of them.
        device: of the result.
        dtype: of the encoders.
        loras: added to the encoders.
        empty_zeros: see `encode_prompts`.
    """
    settings = [str(dtype), device.type, empty_zeros, __version__, torch.__version__]
    key = [list(texts), _files(folder), [(lora.sha256, lora.scale) for lora in loras], settings]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = cache_folder() / "embeddings" / f"{name}.safetensors"
    found = _read(path, device)
    if found is None:
        found = make()
        _write(path, found)
    return found


def _files(folder: ModelFolder) -> list[tuple[str, int, int]]:
    """Name, size and time of change of all files of the encoders and tokenizers."""
    paths = [file for part in PARTS for file in sorted((folder.path / part).glob("*"))]
    paths += [folder.file] if folder.file is not None else []
    found = [(path, path.stat()) for path in paths]
    return [(str(path.resolve()), status.st_size, status.st_mtime_ns) for path, status in found]


def _read(path: Path, device: torch.device) -> TextEmbedding | None:
    try:
        tensors = load_file(path, device=reading_device(device))
        return TextEmbedding(tokens=tensors["tokens"], pooled=tensors.get("pooled"))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        logger.warning("%s cannot be read (%s): the prompt is encoded again", path, error)
        return None


def _write(path: Path, embedding: TextEmbedding) -> None:
    tensors = {"tokens": embedding.tokens.cpu().contiguous()}
    if embedding.pooled is not None:
        tensors["pooled"] = embedding.pooled.cpu().contiguous()
    if sum(tensor.nbytes for tensor in tensors.values()) > LARGEST:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save(tensors))
        oldest = sorted(path.parent.glob("*.safetensors"), key=os.path.getmtime)[:-KEPT]
        for file in oldest:
            file.unlink(missing_ok=True)
    except (OSError, Pgc3dError) as error:
        logger.warning("the embedding of the prompt cannot be kept in %s: %s", path.parent, error)
