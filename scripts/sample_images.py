"""Images for fits and measurements: those of a folder, or samples of a text-to-image model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pgc3d.build.models import locate_model
from pgc3d.config import ModelConfig
from pgc3d.diffusion.files import ModelFolder, read_json
from pgc3d.diffusion.latent import LatentDiffusion, select
from pgc3d.diffusion.models import load_latent_diffusion
from pgc3d.diffusion.text import encode_prompts
from pgc3d.prompts import view_index, view_prompts
from pgc3d.requirements import ModelUse
from pgc3d.types import Cameras, TextEmbedding
from pgc3d.view_prompts import ViewPromptConfig

# Objects of the bundled prior's training set; prompts of samples and studies.
PROMPTS = (
    "a red chair", "a blue armchair", "a horse", "a yellow car", "a bicycle", "a hamburger", "a teapot",
    "a black grand piano", "a green sofa", "a barrel", "a red fire hydrant", "a potted plant", "a city bus",
    "a toilet", "a wooden table", "a white lamp", "a motorcycle", "a purple bed", "a brown backpack",
    "a guitar", "a helmet", "a gray laptop", "an orange mug", "a mailbox",
)  # fmt: skip
BACKGROUNDS = ("blue", "white", "black")  # of drawn views: the first one that the prompt does not name
GUIDANCE_SCALE = 5.0
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class LoadedFolder:
    """A loaded model and where it came from."""

    folder: ModelFolder
    model: LatentDiffusion

    @property
    def views(self) -> ViewPromptConfig:
        return self.folder.view_prompts or ViewPromptConfig()


@dataclass(frozen=True)
class Estimate:
    """A step of a sampling trajectory."""

    timestep: int
    noisy: Float[Tensor, "B C h w"]  # z_t
    clean: Float[Tensor, "B C h w"]  # the model's estimate of z_0


def load_model(name: str, device: torch.device, *, vae: str | None = None) -> LoadedFolder:
    """A model by the name that `--model` takes, in float32 where gradients are studied on a CPU."""
    folder = locate_model(ModelConfig(name=name), ModelUse(), device).folder
    return LoadedFolder(folder, load_latent_diffusion(folder, device=device, vae=vae))


def encode_views(
    loaded: LoadedFolder, prompts: Sequence[str], generator: torch.Generator
) -> tuple[list[str], TextEmbedding, TextEmbedding]:
    """Each prompt from a random view: the texts, their embeddings, and the empty negative prompt's."""
    texts = []
    for prompt in prompts:
        known = view_prompts(prompt, loaded.views)
        texts.append(known[int(torch.randint(len(known), (), generator=generator))])
    encoded = encode_prompts(loaded.folder, [*texts, ""], device=loaded.model.device)
    rows = torch.arange(len(texts) + 1, device=loaded.model.device)
    return texts, select(encoded, rows[:-1]), select(encoded, rows[-1:])


@torch.no_grad()
def sample(
    loaded: LoadedFolder,
    positive: TextEmbedding,
    negative: TextEmbedding,
    *,
    size: int,
    steps: int,
    guidance_scale: float,
    generator: torch.Generator,
) -> Iterator[Estimate]:
    """DDIM without noise (arXiv 2010.02502), one image for each positive prompt; the last is the result."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    model = loaded.model
    config = read_json(loaded.folder.path / "scheduler" / "scheduler_config.json")
    # `predict` always returns the noise.
    scheduler = DDIMScheduler.from_config(config, prediction_type="epsilon", clip_sample=False)
    scheduler.set_timesteps(steps)
    count = len(positive.tokens)
    latents = torch.randn(model.latent_shape(count, size), generator=generator).to(model.device)
    zeros = torch.zeros(count, dtype=torch.long, device=model.device)
    for timestep in scheduler.timesteps.tolist():
        unconditional, conditional = model.predict(
            latents,
            torch.full((count,), timestep, device=model.device),
            conditional=positive,
            unconditional=select(negative, zeros),
            time_ids=model.time_ids(size, size),
        )
        noise = unconditional + guidance_scale * (conditional - unconditional)
        output = scheduler.step(noise, timestep, latents)
        yield Estimate(timestep, latents, output.pred_original_sample)
        latents = output.prev_sample


def chunks(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Consecutive parts of at most so many rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def draw_images(
    loaded: LoadedFolder, count: int, *, size: int, seed: int = 0, steps: int = 20, batch: int = 8
) -> Float[Tensor, "N H W 3"]:
    """Samples of the model: the prompts in turn, from random views."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(count)]
    _, positive, negative = encode_views(loaded, prompts, generator)
    images = []
    for rows in chunks(torch.arange(count, device=loaded.model.device), batch):
        trajectory = sample(
            loaded, select(positive, rows), negative,
            size=size, steps=steps, guidance_scale=GUIDANCE_SCALE, generator=generator,
        )  # fmt: skip
        *_, last = trajectory
        images.append(loaded.model.decode(last.clean))
    return torch.cat(images)


def draw_views(
    loaded: LoadedFolder, prompt: str, cameras: Cameras, *, count: int, size: int, steps: int = 30
) -> list[Float[Tensor, "B H W 3"]]:
    """Samples of the model of a prompt from B cameras, `count` times, each with a seed of its own."""
    device = loaded.model.device
    positive, negative = encode_cameras(loaded, prompt, cameras)
    drawn = []
    for seed in range(count):
        *_, last = sample(
            loaded, positive, negative, size=size, steps=steps, guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        drawn.append(loaded.model.decode(last.clean.to(device)))
    return drawn


def encode_cameras(
    loaded: LoadedFolder, prompt: str, cameras: Cameras
) -> tuple[TextEmbedding, TextEmbedding]:
    """The embeddings of a prompt from each camera, over a plain background, and the empty prompt's."""
    views, count = loaded.views, len(cameras)
    name = next((name for name in BACKGROUNDS if name in views.backgrounds and name not in prompt), "white")
    color = torch.tensor([views.backgrounds.get(name, (1.0, 1.0, 1.0))]).expand(count, 3)
    rows = view_index(cameras.azimuth.cpu(), cameras.elevation.cpu(), color, views)
    texts = [view_prompts(prompt, views)[row] for row in rows.tolist()]
    encoded = encode_prompts(loaded.folder, [*texts, ""], device=loaded.model.device)
    index = torch.arange(count + 1, device=loaded.model.device)
    return select(encoded, index[:-1]), select(encoded, index[-1:])


def read_images(folder: Path, *, size: int, limit: int | None = None) -> Float[Tensor, "N H W 3"]:
    """The images of a folder, in the order of their names, cut square and resized; alpha on white."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)[:limit]
    if not files:
        raise SystemExit(f"{folder} must hold images ({', '.join(sorted(SUFFIXES))}), got none")
    images = []
    for file in files:
        with Image.open(file) as image:
            white = Image.new("RGBA", image.size, "white")
            flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        side = min(flat.size)
        left, top = ((length - side) // 2 for length in flat.size)
        square = flat.crop((left, top, left + side, top + side)).resize(
            (size, size), Image.Resampling.LANCZOS
        )
        images.append(torch.from_numpy(np.array(square)).float() / 255)
    return torch.stack(images)


def gather_images(
    loaded: LoadedFolder, folder: Path | None, *, count: int, size: int, seed: int = 0
) -> Float[Tensor, "N H W 3"]:
    """Images of the folder, or samples where it is None; on the model's device."""
    if folder is None:
        return draw_images(loaded, count, size=size, seed=seed)
    return read_images(folder, size=size, limit=count).to(loaded.model.device)
