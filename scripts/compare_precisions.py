"""Accuracy of a guidance gradient when the products of the UNet's transformers have eight bits.

    python scripts/compare_precisions.py OUT.json
    python scripts/compare_precisions.py OUT.json --model sdxl --device cuda --side 1024 --images 4

Rounds the inputs of the linear layers, each row by its largest number, and the weights, each output by its
largest, to INT8 or to FP8 (e4m3), and multiplies as before: what products of these types would give, without
their speed. Samples of the model, and the same half faded as in the middle of a run, get the gradient of
score distillation at several noise levels. Prints the cosine with the gradient of the unrounded network, the
mean and the smallest, by guidance scale and level.
"""

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from measure_residuals import image_gradients
from sample_images import PROMPTS, LoadedFolder, draw_images, encode_views, load_model
from torch import Tensor, nn

from pgc3d.build.run import resolve_device
from pgc3d.disk import replace_file
from pgc3d.types import TextEmbedding

LEVELS = (0.05, 0.2, 0.4, 0.6, 0.8)  # of the noise, as fractions of the training steps
SCALES = (1.0, 25.0, 101.0)
PLACES = {"all": "", "feed-forward": ".ff."}  # part of the layers' names
FP8 = torch.float8_e4m3fn
Round = Callable[[Tensor], Tensor]


def round_rows(values: Float[Tensor, "*S K"], *, kind: str) -> Float[Tensor, "*S K"]:
    """The values as they come back from `kind`, scaled so that each row's largest is the type's largest."""
    largest = 127.0 if kind == "int8" else torch.finfo(FP8).max
    wide = values.float()
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-12) / largest
    scaled = wide / scale
    rounded = scaled.round() if kind == "int8" else scaled.to(FP8).float()
    return (rounded * scale).to(values.dtype)


class RoundedLinear(nn.Module):
    """A linear layer whose two factors were rounded."""

    def __init__(self, layer: nn.Linear, to: Round) -> None:
        super().__init__()
        self.to_type, self.bias = to, layer.bias
        self.weight = nn.Parameter(to(layer.weight.detach()), requires_grad=False)

    def forward(self, values: Float[Tensor, "*S K"]) -> Float[Tensor, "*S N"]:
        """The product of the rounded factors, and the bias."""
        return nn.functional.linear(self.to_type(values), self.weight, self.bias)


def rounded(unet: Any, to: Round, *, only: str) -> Any:
    """A copy of the UNet with rounded products in its transformers, in layers whose name has `only`."""
    unet = copy.deepcopy(unet)
    for name, module in list(unet.named_modules()):
        for child, layer in list(module.named_children()):
            place = f"{name}.{child}"
            if isinstance(layer, nn.Linear) and "transformer_blocks" in place and only in place:
                setattr(module, child, RoundedLinear(layer, to))
    return unet


def compare(
    loaded: LoadedFolder, prompts: tuple[TextEmbedding, TextEmbedding], images: Tensor
) -> dict[str, Mapping[str, Any]]:
    """The cosines by scale and kind of products."""
    kinds = {f"{kind} {name}": (kind, only) for kind in ("int8", "fp8") for name, only in PLACES.items()}
    found: dict[str, Mapping[str, Any]] = {}
    for scale in SCALES:
        pull = partial(image_gradients, images=images, guidance_scale=scale, seed=0, levels=LEVELS)
        expected = pull(loaded, *prompts).flatten(2)
        for name, (kind, only) in kinds.items():
            unet = rounded(loaded.model.unet, partial(round_rows, kind=kind), only=only)
            other = replace(loaded, model=replace(loaded.model, unet=unet))
            cosines = torch.cosine_similarity(pull(other, *prompts).flatten(2), expected, dim=2)
            levels = dict(zip(map(str, LEVELS), cosines.mean(1).tolist(), strict=True))
            row = {"mean": cosines.mean().item(), "least": cosines.min().item(), "levels": levels}
            found[f"scale {scale:g}, {name}"] = row
            shown = " ".join(f"{value:.5f}" for value in levels.values())
            print(
                f"scale {scale:g}, {name}: {row['mean']:.5f}, least {row['least']:.4f}; {shown}", flush=True
            )
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--images", type=int, default=6, help="samples; as many faded ones are added")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--sampling-steps", type=int, default=15)
    given = parser.parse_args()
    loaded = load_model(given.model, resolve_device(given.device))
    generator = torch.Generator().manual_seed(0)
    _, positive, negative = encode_views(loaded, PROMPTS[: given.images], generator)
    images = draw_images(loaded, given.images, size=given.side, steps=given.sampling_steps)
    faded = 0.5 * images + 0.5 * images.mean((1, 2), keepdim=True)
    found = compare(loaded, (positive, negative), torch.cat([images, faded]))
    replace_file(given.out, (json.dumps({"model": given.model, "cosines": found}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
