"""Train the depth ControlNet of the bundled text prior, on renders of the models that it was trained on.

    python scripts/mini/train_control.py DATASET OUT --minutes 12
    torchrun --nproc-per-node 2 scripts/mini/train_control.py DATASET OUT --minutes 6

The text prior stays as it is: a copy of its encoding half learns residuals for the other half (ControlNet,
arXiv 2302.05543, section 3) from inverse depth as `pgc3d.diffusion.controlnet.depth_image` makes it. A call
that ends before the minutes are used up leaves OUT/state.pt, and the same command goes on from there. At the
end OUT/control_report.json has the loss on held-out models without and with depth, and how well samples fill
the silhouette that they were given; OUT/control_samples.png shows some.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from captions import VIEWS
from jaxtyping import Bool, Float, Int, UInt8
from loop import Budget, MovingAverage, end, load_state, save_state, start, update
from PIL import Image
from store import Pair, composite, named_backgrounds, posterior, render_split
from torch import Tensor, nn
from train_text import DIFFUSION, SIZES, Texts, batch_of, encode_text, make_texts, token_rows
from views import nearest_depth, random_cameras

import pgc3d.mini
from pgc3d.diffusion.controlnet import depth_image
from pgc3d.interfaces import Rasterizer
from pgc3d.prompts import view_index
from pgc3d.rendering import build_rasterizer
from pgc3d.schedules import add_noise, alphas_cumprod, ddim_step, epsilon_from_velocity, velocity

CHANNELS = (16, 32, 64, 96)  # of the depth image's own convolutions, which shrink it as the autoencoder does
DROPOUT = 0.1  # fraction of empty captions
HELD_OUT_VIEWS = 4  # of each model
DRAWN, SHOWN, SAMPLING_STEPS, GUIDANCE_SCALE = 64, 12, 30, 5.0  # samples of held-out models
SAVE_EVERY = 1000  # updates


@dataclass(frozen=True)
class Moments:
    """The autoencoder's posterior of N views at one size."""

    mean: Float[Tensor, "N 4 h w"]
    std: Float[Tensor, "N 4 h w"]


@dataclass(frozen=True)
class ControlStore:
    """N views of P pairs as latents, with their depth; colours of a model share the depth of a camera."""

    pairs: list[Pair]
    moments: dict[int, Moments]  # by the side of the images
    pair: Int[Tensor, " N"]
    suffix: Int[Tensor, " N"]  # index of the text with the camera's direction and the background
    depth_row: Int[Tensor, " N"]  # into `depth`
    depth: UInt8[Tensor, "D H W"]  # inverse depth in 255ths, 0 on the background

    def weights(self) -> Float[Tensor, " N"]:
        """How often each view is drawn."""
        return torch.tensor([pair.weight for pair in self.pairs], device=self.pair.device)[self.pair]


@torch.no_grad()
def build_control_store(  # noqa: PLR0913 - flat on purpose
    folder: Path,
    split: str,
    *,
    views: int,
    recolors: int,
    seed: int,
    vae: Any,
    rasterizer: Rasterizer,
    device: torch.device,
    limit: int | None = None,
) -> ControlStore:
    """Render and encode every model of a split, see `render_split`; images are not kept."""
    generator = torch.Generator().manual_seed(seed)
    picks, named = torch.Generator(device).manual_seed(seed), named_backgrounds(device)
    pairs: list[Pair] = []
    moments: dict[int, list[tuple[Tensor, Tensor]]] = {size: [] for size in SIZES}
    pair: list[Tensor] = []
    suffix: list[Tensor] = []
    depth_row: list[Tensor] = []
    depths: list[Tensor] = []
    for rendered in render_split(
        folder, split, cameras=lambda _: random_cameras(views, generator, device), recolors=recolors,
        resolution=SIZES[-1], rasterizer=rasterizer, device=device, generator=generator, limit=limit,
    ):  # fmt: skip
        cameras, first = rendered.cameras, len(depths) * views
        depth = nearest_depth(rendered.model, cameras, 2 * SIZES[-1], rasterizer)
        gray = F.avg_pool2d(depth_image(depth)[..., :1].permute(0, 3, 1, 2), 2)[:, 0]
        depths.append((gray * 255).round().to(torch.uint8))
        for own, images in zip(rendered.pairs, rendered.images, strict=True):
            which = torch.randint(len(named), (views,), device=device, generator=picks)
            pixels = composite(images, named[which])
            for size in SIZES:
                small = F.interpolate(pixels, size=(size, size), mode="area")
                moments[size].append(posterior(vae, small))
            pair.append(torch.full((views,), len(pairs), device=device))
            suffix.append(view_index(cameras.azimuth, cameras.elevation, named[which], VIEWS))
            depth_row.append(torch.arange(first, first + views, device=device))
            pairs.append(own)
    encoded = {
        size: Moments(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        for size, found in moments.items()
    }
    return ControlStore(
        pairs, encoded, torch.cat(pair), torch.cat(suffix), torch.cat(depth_row), torch.cat(depths)
    )


def make_control(unet: Any) -> Any:
    """A ControlNet that begins as a copy of the UNet's encoding half and adds nothing."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=CHANNELS)


class Trainer:
    """The frozen prior, the ControlNet and its optimiser, of one process."""

    def __init__(self, prior: nn.ModuleDict, control: Any, device: torch.device, rank: int) -> None:
        self.device, self.rank = device, rank
        self.prior = prior.to(device).requires_grad_(requires_grad=False).eval()
        self.control = control.to(device)
        self.models = nn.ModuleDict({"control": control})
        self.average = MovingAverage(control.parameters(), 0.9995)
        self.optimizer = torch.optim.AdamW(
            self.average.source, lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01,
            fused=device.type == "cuda",
        )  # fmt: skip
        self.alphas = alphas_cumprod(DIFFUSION).to(device)
        self.generator = torch.Generator(device)
        networks: tuple[Any, ...] = (prior["unet"], control)
        for network in networks:
            network.to(memory_format=torch.channels_last)

    def errors(
        self,
        store: ControlStore,
        texts: Texts,
        size: int,
        view: Int[Tensor, " B"],
        *,
        controlled: bool = True,
    ) -> Float[Tensor, " B"]:
        """Mean squared error of v for each of some views, at random timesteps and captions."""
        count, device, g = len(view), self.device, self.generator
        pair = store.pair[view]
        option = torch.multinomial(texts.weight[pair], 1, generator=g)[:, 0]
        empty = torch.rand(count, device=device, generator=g) < DROPOUT
        rows = token_rows(texts, texts.choice[pair, option], store.suffix[view], empty)
        mean = store.moments[size].mean[view].float()
        posterior_noise, noise = (torch.randn(mean.shape, device=device, generator=g) for _ in range(2))
        latents = mean + store.moments[size].std[view].float() * posterior_noise
        t = torch.randint(len(self.alphas), (count,), device=device, generator=g)
        noisy = add_noise(latents, noise, self.alphas[t])
        depth = store.depth[store.depth_row[view]][:, None].float() / 255
        condition = F.interpolate(depth, size=(size, size), mode="area").expand(-1, 3, -1, -1)
        output = self.predict(noisy, t, rows, condition if controlled else None)
        return (output - velocity(latents, noise, self.alphas[t])).square().mean((1, 2, 3))

    def predict(
        self,
        noisy: Float[Tensor, "B 4 h w"],
        timesteps: Int[Tensor, " B"],
        rows: Int[Tensor, "B T"],
        condition: Float[Tensor, "B 3 H W"] | None,
    ) -> Float[Tensor, "B 4 h w"]:
        """v, without ControlNet where there is no condition."""
        size = noisy.shape[-1] * 8
        ids = torch.tensor([[size, size, 0, 0, size, size]], device=self.device, dtype=torch.float32)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            with torch.no_grad():
                tokens, pooled = encode_text(self.prior, rows)
            added = {"text_embeds": pooled, "time_ids": ids.expand(len(noisy), -1)}
            inputs = noisy.contiguous(memory_format=torch.channels_last)
            residuals = {}
            if condition is not None:
                down, mid = self.control(
                    inputs, timesteps, encoder_hidden_states=tokens, controlnet_cond=condition,
                    added_cond_kwargs=added, return_dict=False,
                )  # fmt: skip
                residuals = {
                    "down_block_additional_residuals": down, "mid_block_additional_residual": mid,
                }  # fmt: skip
            output: Tensor = self.prior["unet"](
                inputs, timesteps, tokens, added_cond_kwargs=added, return_dict=False, **residuals
            )[0]
        return output.float()

    def step(
        self, store: ControlStore, texts: Texts, draw: Tensor, number: int, count: int, lr: float
    ) -> Tensor:
        """Update `number`; it draws the same views and noise whenever it is made."""
        self.generator.manual_seed(number * 1000 + self.rank)
        size = SIZES[number % 2]
        view = torch.multinomial(draw, batch_of(size, count), replacement=True, generator=self.generator)
        loss = self.errors(store, texts, size, view).mean()
        update(loss, self.optimizer, self.average, lr)
        return loss.detach()


def run(trainer: Trainer, store: ControlStore, texts: Texts, budget: Budget, arguments: Any) -> None:
    """Train until the budget or this call's time is used up."""
    saved, began, draw = arguments.out / "state.pt", time.perf_counter(), store.weights()
    load_state(saved, trainer.models, trainer.optimizer, trainer.average, budget)
    total, count = torch.zeros((), device=trainer.device), 0
    for step in budget.steps(arguments.call_seconds):
        lr = budget.learning_rate(arguments.lr)
        total += trainer.step(store, texts, draw, step, arguments.batch, lr)
        count += 1
        if trainer.rank == 0 and step % 250 == 0:
            print(f"control {step} {time.perf_counter() - began:.0f}s {budget.progress:.3f} "
                  f"loss {total / count:.4f}", flush=True)  # fmt: skip
            total, count = torch.zeros_like(total), 0
        if trainer.rank == 0 and step % SAVE_EVERY == SAVE_EVERY - 1:
            save_state(saved, trainer.models, trainer.optimizer, trainer.average, budget)
    if trainer.rank == 0:
        save_state(saved, trainer.models, trainer.optimizer, trainer.average, budget)


@torch.no_grad()
def losses(trainer: Trainer, store: ControlStore, texts: Texts) -> dict[str, float]:
    """Mean squared error of v over all views of a store, without and with depth, with the same noise."""
    report = {}
    for name, controlled in (("loss_without", False), ("loss_with", True)):
        trainer.generator.manual_seed(0)
        parts = torch.split(torch.arange(len(store.pair), device=trainer.device), 64)
        found = [trainer.errors(store, texts, SIZES[-1], part, controlled=controlled) for part in parts]
        report[name] = float(torch.cat(found).mean())
    return report


@torch.no_grad()
def draw(
    trainer: Trainer, rows: Int[Tensor, "B T"], condition: Float[Tensor, "B 3 H W"] | None, size: int
) -> Float[Tensor, "B 4 h w"]:
    """Latents of samples with classifier-free guidance, by DDIM, all from the same noise."""
    count, device = len(rows), trainer.device
    noise = torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0)).to(device)
    latents = noise.expand(count, -1, -1, -1)
    empty = torch.ones_like(rows).index_fill(1, torch.tensor([0], device=device), 0)
    levels = torch.linspace(len(trainer.alphas) - 1, 0, SAMPLING_STEPS + 1, device=device).round().long()
    one = torch.ones(count, device=device)
    for now, after in pairwise(levels.tolist()):
        timesteps = torch.full((2 * count,), now, device=device)
        pair = torch.cat([latents, latents])
        both = None if condition is None else condition.repeat(2, 1, 1, 1)
        output = trainer.predict(pair, timesteps, torch.cat([empty, rows]), both)
        without, with_text = epsilon_from_velocity(output, pair, trainer.alphas[timesteps]).chunk(2)
        predicted = without + GUIDANCE_SCALE * (with_text - without)
        following = trainer.alphas[after] * one if after else one
        latents = ddim_step(latents, predicted, trainer.alphas[now] * one, following)
    return latents


def silhouette(images: Float[Tensor, "B 3 H W"]) -> Bool[Tensor, "B H W"]:
    """Pixels that differ from the plain background, whose colour is that of the corners."""
    corners = torch.stack([images[..., y, x] for y in (2, -3) for x in (2, -3)]).median(0).values
    return (images - corners[..., None, None]).abs().amax(1) > 0.08


@torch.no_grad()
def evaluate(trainer: Trainer, store: ControlStore, texts: Texts, vae: Any, out: Path) -> dict[str, float]:
    """The losses on a store, and how well samples fit the silhouettes of their depth; writes a sheet."""
    size, device = SIZES[-1], trainer.device
    view = torch.arange(0, len(store.pair), HELD_OUT_VIEWS, device=device)[:DRAWN]
    depth = store.depth[store.depth_row[view]][:, None].float() / 255
    empty = torch.zeros(len(view), dtype=torch.bool, device=device)
    rows = token_rows(texts, texts.choice[store.pair[view], 0], store.suffix[view], empty)
    report, sheets = losses(trainer, store, texts), [depth.expand(-1, 3, -1, -1)]
    for name, condition in (("iou_without", None), ("iou_with", depth.expand(-1, 3, -1, -1))):
        latents = draw(trainer, rows, condition, size) / float(vae.config.scaling_factor)
        images = torch.cat([vae.decode(part).sample for part in torch.split(latents, 8)]) / 2 + 0.5
        drawn, shown = silhouette(images), depth[:, 0] > 0
        overlap = (drawn & shown).sum((1, 2)) / (drawn | shown).sum((1, 2))
        report[name] = float(overlap.mean())
        sheets.append(images.clamp(0, 1))
    wide = torch.cat([torch.cat(list(part[:SHOWN]), dim=2) for part in sheets], dim=1)
    pixels = (F.avg_pool2d(wide, 2) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(out / "control_samples.png")
    return report


def load_prior(folder: Path) -> nn.ModuleDict:
    """UNet and text encoders of a text prior, in float32."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return nn.ModuleDict({
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(
            folder / "text_encoder_2", dtype=torch.float32
        ),
    })  # fmt: skip


def save_control(control: Any, out: Path) -> None:
    """Write the ControlNet in half precision, without a path of this computer in its configuration."""
    control.register_to_config(_name_or_path="")
    control.half().save_pretrained(out)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, default=pgc3d.mini.text_model(), help="the text prior")
    parser.add_argument("--minutes", type=float, default=12.0, help="of updates, all calls together")
    parser.add_argument("--call-seconds", type=float, default=math.inf, help="stop updating after this time")
    parser.add_argument("--batch", type=int, default=512, help="128 px images for each process")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--views", type=int, default=24, help="of each model")
    parser.add_argument("--paints", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None, help="use only so many models")
    return parser.parse_args()


def main() -> None:
    """Render, train, save, evaluate."""
    arguments = parse_arguments()
    rank, _, device = start()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTokenizer

    vae = AutoencoderKL.from_pretrained(arguments.text / "vae", torch_dtype=torch.float32).to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(arguments.text / "tokenizer")
    prior = load_prior(arguments.text)
    torch.manual_seed(0)
    trainer = Trainer(prior, make_control(prior["unet"]), device, rank)
    rasterizer = build_rasterizer("auto", device)

    def store(split: str, views: int, recolors: int) -> ControlStore:
        return build_control_store(
            arguments.dataset, split, views=views, recolors=recolors, seed=90 + rank, vae=vae,
            rasterizer=rasterizer, device=device, limit=arguments.limit,
        )  # fmt: skip

    arguments.out.mkdir(parents=True, exist_ok=True)
    training = store("train", arguments.views, arguments.paints)
    budget = Budget(arguments.minutes, device)
    run(trainer, training, make_texts(training.pairs, tokenizer, device), budget, arguments)
    if rank == 0:
        trainer.average.swap()
        held_out = store("test", HELD_OUT_VIEWS, 0)
        texts = make_texts(held_out.pairs, tokenizer, device)
        report = evaluate(trainer, held_out, texts, vae, arguments.out)
        report |= {"updates": budget.step, "minutes": budget.used / 60}
        (arguments.out / "control_report.json").write_text(json.dumps(report, indent=1) + "\n")
        save_control(trainer.control, arguments.out)
        print("held-out", report, flush=True)
    end()


if __name__ == "__main__":
    main()
