"""Train the autoencoder of the bundled prior on renders and save it in diffusers' layout.

    torchrun --nproc-per-node 2 scripts/mini/train_vae.py DATASET OUT --minutes 4

Writes OUT/vae and, last of all, OUT/vae_report.json with the PSNR on the held-out models.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from loop import Budget, MovingAverage, end, start, update
from store import ViewStore, build_store, composite, named_backgrounds
from torch import Tensor, nn

from pgc3d.rendering import build_rasterizer


def make_vae() -> Any:
    """AutoencoderKL in SDXL's layout: factor 8, 4 latent channels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64, 96, 128), layers_per_block=1, latent_channels=4, norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False, sample_size=256, scaling_factor=1.0,
    )  # fmt: skip


class Reconstruction(nn.Module):
    """Encode, sample, decode, and compute the losses; one graph for the compiler."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, squared error and Kullback-Leibler divergence for images [B, 3, H, W] in [-1, 1].

        The loss sums L1 distances of pixels and of image gradients at three scales, 4 times the squared error
        and 2e-4 times the divergence.
        """
        moments = self.vae.quant_conv(self.vae.encoder(image))
        mean, logvar = moments.chunk(2, 1)
        logvar = logvar.clamp(-30, 20)
        latents = mean + noise * torch.exp(0.5 * logvar)
        out = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        divergence = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()
        loss = 2e-4 * divergence
        small, target = out, image
        for weight in (1.0, 0.5, 0.5):
            difference = small - target
            loss = loss + weight * (difference.abs().mean() + _edges(small, target))
            small, target = F.avg_pool2d(small, 2), F.avg_pool2d(target, 2)
        square = F.mse_loss(out, image)
        return loss + 4 * square, square.detach(), divergence.detach()


def _edges(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of image gradients: keeps small saturated details from turning gray."""
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def _batch(store: ViewStore, weights: Tensor, size: int, count: int) -> Tensor:
    """Whole views scaled to `size`, and crops of that size, half and half, [count, 3, size, size] in [-1, 1].

    At the store's own size there are whole views only. Seven in ten stand on a background that has a name,
    the others on any colour.
    """
    index = torch.multinomial(weights, count, replacement=True)
    device = store.images.device
    named = named_backgrounds(device)
    background = named[torch.randint(len(named), (count,), device=device)]
    background = torch.where(
        torch.rand(count, 1, device=device) < 0.3, torch.rand(count, 3, device=device), background
    )
    image = composite(store.images[index], background)
    full = image.shape[-1]
    if size == full:
        return image * 2 - 1
    half = count // 2
    whole = F.interpolate(image[:half], size=(size, size), mode="area")
    row, column = (torch.randint(full - size + 1, (count - half, 1), device=device) for _ in range(2))
    rows = row + torch.arange(size, device=device)
    columns = column + torch.arange(size, device=device)
    picks = torch.arange(half, count, device=device)
    crops = image.permute(0, 2, 3, 1)[picks[:, None, None], rows[:, :, None], columns[:, None, :]]
    return torch.cat([whole, crops.permute(0, 3, 1, 2)]) * 2 - 1


@torch.no_grad()
def normalize_latents(vae: Any, images: Tensor) -> None:
    """Fold an affine map into the 1x1 convolutions so that latents have zero mean and unit deviation.

    What the decoder makes of them stays the same. The posterior's log variance, channels 4 to 7 of the
    moments, moves along.
    """
    means = [vae.quant_conv(vae.encoder(part)).chunk(2, 1)[0] for part in torch.split(images, 64)]
    latents = torch.cat(means).float()
    shift, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * shift).sum(1)
    post.weight *= scale[None, :, None, None]
    quant.weight[:4] /= scale[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - shift) / scale
    quant.bias[4:] -= 2 * scale.log()


def train(store: ViewStore, device: torch.device, arguments: argparse.Namespace, rank: int) -> Any:
    """Run the training; the last fifth of the time sees whole views at full resolution."""
    torch.manual_seed(0)
    vae = make_vae().to(device)
    module = Reconstruction(vae)
    run = torch.compile(module, dynamic=False) if device.type == "cuda" else module
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    average = MovingAverage(parameters, 0.999)
    budget = Budget(arguments.minutes, device)
    weights = store.weights()
    torch.manual_seed(100 + rank)
    began = time.perf_counter()
    for step in budget.steps():
        full = budget.progress > 0.8 or step == 0  # both shapes are compiled before the clock starts
        size, count = (256, arguments.batch // 4) if full else (128, arguments.batch)
        image = _batch(store, weights, size, count)
        noise = torch.randn(count, 4, size // 8, size // 8, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, square, divergence = run(image, noise)
        update(loss, optimizer, average, budget.learning_rate(arguments.lr))
        if rank == 0 and step % 200 == 0:
            psnr = 10 * torch.log10(4 / square)
            print(f"vae {step} {time.perf_counter() - began:.0f}s {budget.progress:.2f} "
                  f"loss {loss:.4f} psnr {psnr:.2f} kl {divergence:.1f}", flush=True)  # fmt: skip
    average.swap()
    return vae


@torch.no_grad()
def held_out_psnr(vae: Any, store: ViewStore, size: int) -> float:
    """Reconstruction of held-out models on gray, mean of the per-image PSNR in dB."""
    gray = torch.full((len(store.images), 3), 0.5, device=store.images.device)
    values = []
    for k in range(0, len(store.images), 64):
        image = composite(store.images[k : k + 64], gray[k : k + 64])
        image = F.interpolate(image, size=(size, size), mode="area") if size != image.shape[-1] else image
        out = vae(image * 2 - 1).sample / 2 + 0.5
        values.append(-10 * torch.log10(((out.clamp(0, 1) - image) ** 2).mean((1, 2, 3))))
    return float(torch.cat(values).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, help="folder of the checkpoint; the VAE goes to OUT/vae")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=192, help="images of 128 px for each process")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--limit", type=int, default=None, help="use only so many models")
    arguments = parser.parse_args()
    rank, _, device = start()
    rasterizer = build_rasterizer("auto", device)
    shared: dict[str, Any] = {
        "resolution": 256,
        "rasterizer": rasterizer,
        "device": device,
        "limit": arguments.limit,
    }
    store = build_store(
        arguments.dataset, "train", views=arguments.views, recolors=2, seed=1 + rank, **shared
    )
    vae = train(store, device, arguments, rank)
    index = torch.multinomial(store.weights(), min(1024, len(store.images)), replacement=True)
    named = named_backgrounds(device)
    background = named[torch.randint(len(named), (len(index),), device=device)]
    normalize_latents(vae, composite(store.images[index], background) * 2 - 1)
    if rank == 0:
        held = build_store(arguments.dataset, "test", views=4, recolors=0, seed=0, **shared)
        report = {f"psnr_{size}": held_out_psnr(vae, held, size) for size in (128, 256)}
        print("held-out", report, flush=True)
        vae.save_pretrained(arguments.out / "vae")
        (arguments.out / "vae_report.json").write_text(json.dumps(report))
    end()


if __name__ == "__main__":
    main()
