"""Draw other views of held-out models with an image prior: PSNR against the truth, and a sheet.

    python scripts/mini/evaluate_image.py DATASET FOLDER

Writes FOLDER/image_report.json and FOLDER/image_samples.png. The sheet has two lines for each model: the
input image with the views that were drawn, and the same views as they are.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from framing import view_groups
from image_prior import condition_token, read_folder
from jaxtyping import Float
from loop import start
from PIL import Image
from store import composite, posterior, render_split
from torch import Tensor, nn

import pgc3d.mini
from pgc3d.diffusion.zero123 import polar_pose
from pgc3d.guidance.score import classifier_free_guidance
from pgc3d.rendering import build_rasterizer

CONDITION_DEGREES = (30.0, 20.0)  # azimuth and elevation of the input view
TURNS_DEGREES = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)  # from there, at the same elevation
STEPS = 30
ROWS = 8


def held_out_views(
    folder: Path, resolution: int, device: torch.device, limit: int | None
) -> Float[Tensor, "M K 3 H W"]:
    """Images of the held-out models on white, sRGB: the input view, then the turned ones."""
    azimuth = torch.tensor([[0.0, *TURNS_DEGREES]], device=device) + CONDITION_DEGREES[0]
    elevation = torch.full_like(azimuth, CONDITION_DEGREES[1]).deg2rad()
    rendered = render_split(
        folder, "test", cameras=lambda model: view_groups(model.vertices, azimuth.deg2rad(), elevation),
        recolors=0, resolution=resolution, rasterizer=build_rasterizer("auto", device), device=device,
        generator=torch.Generator().manual_seed(0), limit=limit,
    )  # fmt: skip
    white = torch.ones(1, 3, device=device)
    return torch.stack([composite(model.images[0], white) for model in rendered])


@torch.no_grad()
def draw(
    models: nn.ModuleDict,
    vae: Any,
    scheduler: Any,
    image: Float[Tensor, "B 3 H W"],
    pose: Float[Tensor, "B 4"],
    guidance_scale: float,
) -> Float[Tensor, "B 3 H W"]:
    """Draw one other view of each image, all from the same noise; `scheduler` is diffusers'."""
    condition = posterior(vae, image)[0].float()
    token = condition_token(models, image, pose)
    tokens = torch.cat([torch.zeros_like(token), token])
    conditions = torch.cat([torch.zeros_like(condition), condition])
    noise = torch.randn(condition.shape[1:], generator=torch.Generator().manual_seed(0))
    latents = noise.to(condition.device).expand_as(condition)
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        inputs = torch.cat([torch.cat([latents, latents]), conditions], 1)
        output = models["unet"](inputs, timestep.to(latents.device), tokens, return_dict=False)[0]
        unconditional, conditional = output.chunk(2)
        guided = classifier_free_guidance(unconditional, conditional, guidance_scale)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    decoded: Tensor = vae.decode(latents, return_dict=False)[0] / 2 + 0.5
    return decoded.clamp(0, 1)


def psnr(image: Float[Tensor, "M K 3 H W"], truth: Float[Tensor, "M K 3 H W"]) -> Float[Tensor, "M K"]:
    """Peak signal-to-noise ratio of each image in dB."""
    return -10 * torch.log10(((image - truth) ** 2).mean((2, 3, 4)).clamp(min=1e-10))


def write_sheet(
    path: Path, views: Float[Tensor, "M K 3 H W"], drawn: Float[Tensor, "M L 3 H W"], side: int = 128
) -> None:
    """Input and drawn views of some models, each above the true views."""
    lines = torch.stack([torch.cat([views[:, :1], drawn], 1), views], 1).flatten(0, 1)  # [2 M, K, ...]
    small = F.interpolate(lines.flatten(0, 1), (side, side), mode="area")
    small = small.reshape(*lines.shape[:3], side, side)
    pixels = small.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((pixels * 255).round().byte().cpu().numpy()).save(path)


def evaluate(
    folder: Path,
    dataset: Path,
    text: Path,
    device: torch.device,
    *,
    guidance_scale: float = 3.0,
    limit: int | None = None,
) -> dict[str, Any]:
    """Draw the held-out models, write report and sheet to `folder`, and return the report."""
    from diffusers import DDIMScheduler
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    models = read_folder(folder).to(device)
    vae = AutoencoderKL.from_pretrained(text / "vae").to(device).float().eval()
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    unet: Any = models["unet"]
    views = held_out_views(dataset, 8 * unet.config.sample_size, device, limit)
    turn = torch.tensor(TURNS_DEGREES, device=device).deg2rad()
    elevation = torch.full_like(turn, math.radians(CONDITION_DEGREES[1]))
    pose = polar_pose(turn, elevation, elevation)
    truth = views[:, 1:]
    drawn = torch.cat([
        draw(models, vae, scheduler, part[:, :1].expand_as(part[:, 1:]).flatten(0, 1),
             pose.repeat(len(part), 1), guidance_scale)
        for part in torch.split(views, 16)
    ]).reshape(truth.shape)  # fmt: skip
    quality = psnr(drawn, truth)
    report = {
        "models": len(views), "guidance_scale": guidance_scale, "steps": STEPS,
        "psnr": float(quality.mean()),
        "psnr_of_each_turn": dict(zip(map(str, TURNS_DEGREES), quality.mean(0).tolist(), strict=True)),
        "psnr_of_the_input_picture": float(psnr(views[:, :1].expand_as(truth), truth).mean()),
    }  # fmt: skip
    (folder / "image_report.json").write_text(json.dumps(report, indent=1) + "\n")
    chosen = torch.linspace(0, len(views) - 1, min(ROWS, len(views)), device=device).round().long()
    write_sheet(folder / "image_samples.png", views[chosen], drawn[chosen])
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("folder", type=Path, help="image prior")
    parser.add_argument(
        "--text", type=Path, default=pgc3d.mini.text_model(), help="whose autoencoder it shares"
    )
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--limit", type=int, default=None, help="use only so many models")
    arguments = parser.parse_args()
    _, _, device = start()
    print(evaluate(
        arguments.folder, arguments.dataset, arguments.text, device,
        guidance_scale=arguments.guidance_scale, limit=arguments.limit,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
