"""R-precision: the fraction of a result's renders for which a CLIP model retrieves the right text.

The model is independent of the guidance of a run. Its folder is a CLIP checkpoint in transformers' layout,
with distractor texts in `captions.json`; `scripts/mini/train_contrastive.py` makes one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from pgc3d.diffusion.files import loading
from pgc3d.diffusion.text import quiet_transformers
from pgc3d.errors import WeightsNotFoundError

CANDIDATES = 100  # texts to retrieve from, the true one included
# CLIP's own normalisation, of sRGB in [0, 1]
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Retriever:
    """A CLIP model with the captions of its training set."""

    model: Any  # transformers' CLIPModel
    tokenizer: Any
    captions: tuple[str, ...]

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B C"]:
        """Unit embeddings of images, sRGB in [0, 1]."""
        size = self.model.config.vision_config.image_size
        pixels = interpolate(images.permute(0, 3, 1, 2), size=(size, size), mode="area")
        mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        hidden = self.model.vision_model(pixel_values=(pixels - mean) / deviation).pooler_output
        return normalize(self.model.visual_projection(hidden), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "N C"]:
        """Unit embeddings of texts."""
        device = self.model.logit_scale.device
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(device)
        hidden = self.model.text_model(**inputs).pooler_output
        return normalize(self.model.text_projection(hidden), dim=-1)

    def r_precision(self, images: Float[Tensor, "B H W 3"], text: str, distractors: Sequence[str]) -> float:
        """Fraction of the images that are nearer to `text` than to every distractor (Poole et al. 2023).

        Args:
            images: sRGB in [0, 1].
            text: the right description; texts are compared without case.
            distractors: wrong texts; the model's own captions follow, up to 100 texts in all.

        Raises:
            ValueError: there is no distractor.
        """
        candidates = dict.fromkeys(caption.lower() for caption in (*distractors, *self.captions))
        candidates.pop(text.lower(), None)
        texts = [text.lower(), *list(candidates)[: CANDIDATES - 1]]
        similarity = self.embed_images(images) @ self.embed_texts(texts).T
        if len(texts) == 1:
            raise ValueError("r_precision must have at least one distractor, got none")
        return (similarity[:, 0] > similarity[:, 1:].amax(1)).double().mean().item()


def load_retriever(folder: Path, device: torch.device) -> Retriever:
    """The model of a checkpoint folder, in float32.

    Raises:
        WeightsNotFoundError: the folder is missing or incomplete.
    """
    if not (folder / "config.json").is_file():
        raise WeightsNotFoundError(
            f"the contrastive model must be a folder with config.json, got none in {folder}; train one "
            "with scripts/mini/train_contrastive.py"
        )
    from transformers import CLIPModel, CLIPTokenizer

    with loading(folder), quiet_transformers():
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).float()
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        captions = tuple(str(text) for text in json.loads((folder / "captions.json").read_text()))
    model = model.to(device).eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
    return Retriever(model=model, tokenizer=tokenizer, captions=captions)
