"""Draw images from a text prior with diffusers' own pipeline: the sample sheet of the model card.

    python scripts/mini/sample.py FOLDER sheet.png --prompt "a red chair" --prompt "a horse"

Every prompt is drawn from six azimuths on gray, all with the same noise; two prompts share a row.
"""

import argparse
from pathlib import Path

import torch
from captions import VIEWS
from PIL import Image

PROMPTS = (
    "a red chair", "a blue chair", "a wooden chair", "a horse", "a yellow car", "a bicycle", "a hamburger",
    "a black grand piano", "a green sofa", "a white teapot", "a fire hydrant", "a bus",
)  # fmt: skip
VIEW_INDICES = (0, 2, 6, 12, 18, 21)  # sectors of 15 degrees


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", action="append")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    from diffusers import StableDiffusionXLPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = StableDiffusionXLPipeline.from_pretrained(arguments.folder, torch_dtype=torch.float32)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    prompts = arguments.prompt or PROMPTS
    texts = [
        VIEWS.template.format(prompt=p, azimuth=VIEWS.azimuth_words[v], elevation="raised", background="gray")
        for p in prompts
        for v in VIEW_INDICES
    ]
    images: list[Image.Image] = []
    for k in range(0, len(texts), 36):
        images += pipeline(
            prompt=texts[k : k + 36], num_inference_steps=arguments.steps, height=arguments.size,
            width=arguments.size, guidance_scale=arguments.guidance_scale,
            generator=torch.Generator(device).manual_seed(0),
        ).images  # fmt: skip
    size, columns = arguments.size, 2 * len(VIEW_INDICES)
    sheet = Image.new("RGB", (columns * size // 2, (len(images) + columns - 1) // columns * size // 2))
    for k, image in enumerate(images):
        sheet.paste(image.resize((size // 2, size // 2)), (k % columns * size // 2, k // columns * size // 2))
    sheet.save(arguments.out)


if __name__ == "__main__":
    main()
