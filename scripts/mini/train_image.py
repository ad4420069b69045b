"""Train the image part of the bundled prior: Zero123's layout, warm-started from the text part.

    torchrun --nproc-per-node 2 scripts/mini/train_image.py DATASET OUT --minutes 16.5

A call that ends before the minutes are used up leaves OUT/state.pt, and the same command goes on from there,
with the same images, which it renders again. The result is a folder without an autoencoder, which is
the text part's; at the end the held-out models are drawn, see evaluate_image.py.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from evaluate_image import evaluate
from image_prior import (
    DIFFUSION,
    condition_token,
    load_text_prior,
    make_models,
    read_folder,
    save_folder,
    warm_start,
)
from jaxtyping import Float
from loop import Budget, MovingAverage, end, load_state, save_state, set_fast_math, start, update
from pairs import PairSettings, PairStore, build_pairs
from torch import Tensor, nn

import pgc3d.mini
from pgc3d.diffusion.zero123 import polar_pose
from pgc3d.rendering import build_rasterizer
from pgc3d.schedules import add_noise, alphas_cumprod, velocity

DROPOUT = 0.1  # fraction of images without image and pose, for guidance
SAVE_EVERY = 1000  # steps


class Trainer:
    """Models and optimiser of one process."""

    def __init__(self, models: nn.ModuleDict, device: torch.device, rank: int) -> None:
        self.device, self.rank = device, rank
        self.models = models.to(device)
        self.average = MovingAverage(models.parameters(), 0.9995)
        self.optimizer = torch.optim.AdamW(
            self.average.source, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.alphas = alphas_cumprod(DIFFUSION).to(self.device)
        self.generator = torch.Generator(self.device)
        unet: Any = models["unet"]
        unet.to(memory_format=torch.channels_last)
        self.unet = torch.compile(unet, dynamic=False) if self.device.type == "cuda" else unet

    def compile(self, count: int, resolution: int) -> None:
        """Compile, on noise, what `loss` does with the models."""
        latents = torch.zeros(2, count, 4, resolution // 8, resolution // 8, device=self.device)
        image = torch.zeros(count, 3, resolution, resolution, device=self.device)
        zeros = torch.zeros(count, device=self.device)
        output = self.predict(
            latents[0], zeros.long(), latents[1], image, zeros[:, None].expand(-1, 4), zeros
        )
        torch.autograd.backward(output.mean())
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, pairs: PairStore, count: int) -> Tensor:
        """Mean squared error of v in `count` random pairs: an input image and any view of its group."""
        g, device = self.generator, self.device
        row = torch.multinomial(pairs.weight, count, replacement=True, generator=g)
        view = torch.randint(pairs.mean.shape[1], (count,), device=device, generator=g)
        given = torch.multinomial(pairs.is_input[row].float(), 1, generator=g)[:, 0]
        keep = (torch.rand(count, device=device, generator=g) >= DROPOUT).float()
        spread = torch.arange(count, device=device) + torch.rand(count, device=device, generator=g)
        level = (spread / count).sqrt()  # noisier ones more often: there the conditions decide
        t = (level * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        mean = pairs.mean[row, view].float()
        posterior_noise, noise = (torch.randn(mean.shape, device=device, generator=g) for _ in range(2))
        latents = mean + pairs.std[row, view].float() * posterior_noise
        noisy = add_noise(latents, noise, self.alphas[t])
        turn = pairs.azimuth[row, view] - pairs.azimuth[row, given]
        pose = polar_pose(turn, pairs.elevation[row, view], pairs.elevation[row, given])
        condition, image = pairs.mean[row, given].float(), pairs.image[row, given].float() / 255
        output = self.predict(noisy, t, condition, image, pose, keep)
        return F.mse_loss(output, velocity(latents, noise, self.alphas[t]))

    def predict(
        self,
        noisy: Float[Tensor, "B 4 h w"],
        timesteps: Tensor,
        condition: Float[Tensor, "B 4 h w"],
        image: Float[Tensor, "B 3 H W"],
        pose: Float[Tensor, "B 4"],
        keep: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 4 h w"]:
        """v; where `keep` is 0, latents and token of the condition are zeros."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            token = condition_token(self.models, image, pose) * keep[:, None, None]
            inputs = torch.cat([noisy, condition * keep[:, None, None, None]], 1)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            output: Tensor = self.unet(inputs, timesteps, token, return_dict=False)[0]
        return output.float()

    def step(self, pairs: PairStore, number: int, count: int, lr: float) -> Tensor:
        """Update `number`; it draws the same pairs and noise whenever it is made."""
        self.generator.manual_seed(number * 1000 + self.rank)
        loss = self.loss(pairs, count)
        update(loss, self.optimizer, self.average, lr)
        return loss.detach()


def run(
    trainer: Trainer, pairs: PairStore, budget: Budget, arguments: argparse.Namespace, began: float
) -> None:
    """Train until the budget or this call's time is used up; process 0 saves and reports."""
    saved = arguments.out / "state.pt"
    load_state(saved, trainer.models, trainer.optimizer, trainer.average, budget)
    total, count = torch.zeros((), device=trainer.device), 0
    for step in budget.steps(arguments.call_seconds - (time.perf_counter() - began)):
        total += trainer.step(pairs, step, arguments.batch, budget.learning_rate(arguments.lr))
        count += 1
        if trainer.rank == 0 and step % arguments.report_every == 0:
            print(f"image {step} {time.perf_counter() - began:.0f}s {budget.progress:.3f} "
                  f"loss {total / count:.4f}", flush=True)  # fmt: skip
            total, count = torch.zeros_like(total), 0
        if trainer.rank == 0 and step % SAVE_EVERY == SAVE_EVERY - 1:
            save_state(saved, trainer.models, trainer.optimizer, trainer.average, budget)
    if trainer.rank == 0:
        save_state(saved, trainer.models, trainer.optimizer, trainer.average, budget)
        print(f"image training: {budget.used / 60:.1f} of {budget.seconds / 60:.1f} minutes, "
              f"{budget.step} steps", flush=True)  # fmt: skip


def starting_models(text: Path, resolution: int, folder: Path | None = None) -> nn.ModuleDict:
    """What training starts from, the same in every process: an image prior's folder, or the text prior."""
    if folder is not None:
        return read_folder(folder).train()
    torch.manual_seed(0)
    text_unet, pooled = load_text_prior(text)
    models = make_models(dict(text_unet.config), resolution)
    warm_start(models["unet"], text_unet, pooled)
    return models


def fill_compile_cache(
    text: Path, resolution: int, folder: Path | None, count: int, device: torch.device
) -> None:
    """Compile what the training will, in a process of its own; the training finds it on the disk.

    It takes as long as making the pairs. In a thread beside them it hung for ever on an H100.
    """
    set_fast_math(device)
    Trainer(starting_models(text, resolution, folder), device, 0).compile(count, resolution)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, default=pgc3d.mini.text_model(), help="text prior to start from")
    parser.add_argument("--start", type=Path, default=None, help="image prior to start from instead")
    parser.add_argument("--minutes", type=float, default=16.5, help="of updates, all calls together")
    parser.add_argument("--call-seconds", type=float, default=math.inf, help="stop updating after this time")
    parser.add_argument("--batch", type=int, default=320, help="images for each process")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--shapes", type=int, default=6, help="each model as it is, then stretched at random")
    parser.add_argument("--views", type=int, default=8, help="of each shape")
    parser.add_argument("--paints", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None, help="use only so many models")
    parser.add_argument("--seed", type=int, default=50, help="of the images; one more for each process")
    parser.add_argument("--report-every", type=int, default=250, help="steps")
    return parser.parse_args()


def main() -> None:
    """Render, train, save, evaluate."""
    began, arguments = time.perf_counter(), parse_arguments()
    rank, _, device = start()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(arguments.text / "vae").to(device).eval()
    settings = PairSettings(
        arguments.shapes, arguments.views, arguments.paints, arguments.resolution, arguments.seed + rank,
        arguments.limit,
    )  # fmt: skip
    models = starting_models(arguments.text, arguments.resolution, arguments.start)
    trainer = Trainer(models, device, rank)
    beside = torch.multiprocessing.get_context("spawn").Process(
        target=fill_compile_cache,
        args=(arguments.text, arguments.resolution, arguments.start, arguments.batch, device),
    )
    if device.type == "cuda":
        beside.start()
    pairs = build_pairs(arguments.dataset, settings, vae, build_rasterizer("auto", device))
    arguments.out.mkdir(parents=True, exist_ok=True)
    if device.type == "cuda":
        beside.join()
    budget = Budget(arguments.minutes, device)
    run(trainer, pairs, budget, arguments, began)
    if rank == 0:
        trainer.average.swap()
        save_folder(trainer.models, arguments.out)
        if budget.progress >= 1.0:
            report = evaluate(arguments.out, arguments.dataset, arguments.text, device, limit=arguments.limit)
            print("held-out", report, flush=True)
    end()


if __name__ == "__main__":
    main()
