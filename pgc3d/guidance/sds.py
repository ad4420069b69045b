"""Score distillation from a latent diffusion model, as a gradient on the picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.diffusion.controlnet import Control, ControlConfig, condition_image, control_residuals
from pgc3d.diffusion.latent import LatentDiffusion, select
from pgc3d.diffusion.linear_encoder import LinearEncoder
from pgc3d.guidance import score
from pgc3d.prompts import ViewPromptConfig, view_index, view_prompts
from pgc3d.schedules import PiecewiseLinear, add_noise, check_timestep_range, sample_timesteps
from pgc3d.types import Cameras, GuidanceOutput, Rendering, TextEmbedding

Formula = Literal["sds", "csd"]


@dataclass(frozen=True)
class SdsConfig:
    """Score distillation.

    `t_min` and `t_max` are schedules (see `PiecewiseLinear`) of fractions of the noise levels. Sizes are in
    pixels; `resolution` 0 means the model's own and -1 the picture's, for models trained at several sizes.
    `original_size` and `target_size` are SDXL's size conditions, 0 for the resolution. `linear_encoder` is a
    file of `scripts/fit_linear_encoder.py`, through which gradients then go instead of the encoder.
    """

    kind: Literal["sds"] = "sds"
    formula: Formula = "sds"
    guidance_scale: float = 100.0  # uncond + s (cond - uncond)
    negative_prompt: str = ""
    t_min: tuple[float, ...] = (0.02,)
    t_max: tuple[float, ...] = (0.0, 0.98, 0.5, 0.5)
    weighting: score.Weighting = "sigma2"
    resolution: int = 0
    original_size: int = 0
    target_size: int = 0
    controls: dict[str, ControlConfig] = field(default_factory=dict)  # by a name of your choice
    linear_encoder: str | None = None

    def __post_init__(self) -> None:
        if not self.guidance_scale >= 0.0:
            raise ValueError(f"guidance_scale must not be negative, got {self.guidance_scale}")
        for name in ("original_size", "target_size"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be positive, or 0 for the resolution, got {getattr(self, name)}"
                )
        if self.resolution < -1:
            raise ValueError(
                "resolution must be positive, 0 for the model's own or -1 for the picture's, "
                f"got {self.resolution}"
            )
        if self.resolution > 0 and self.resolution % 8:
            raise ValueError(f"resolution must be a multiple of 8, got {self.resolution}")
        check_timestep_range(PiecewiseLinear(self.t_min), PiecewiseLinear(self.t_max))


class ScoreDistillation:
    """Asks a frozen text-to-image model how pictures should change; satisfies `interfaces.Guidance`."""

    def __init__(  # noqa: PLR0913 - flat on purpose
        self,
        *,
        model: LatentDiffusion,
        positive: TextEmbedding,
        negative: TextEmbedding,
        view_prompts_config: ViewPromptConfig,
        generator: torch.Generator,
        guidance_scale: float = 100.0,
        t_min: PiecewiseLinear = PiecewiseLinear((0.02,)),  # noqa: B008 - immutable
        t_max: PiecewiseLinear = PiecewiseLinear((0.98,)),  # noqa: B008
        formula: Formula = "sds",
        weighting: score.Weighting = "sigma2",
        resolution: int = 0,
        original_size: int = 0,
        target_size: int = 0,
        controls: Sequence[Control] = (),
        linear_encoder: LinearEncoder | None = None,
    ) -> None:  # fmt: skip
        """Hold what every step needs on the device.

        Args:
            model: the teacher.
            positive: one entry per text of `view_prompts(prompt, view_prompts_config)`, in that order.
            negative: one entry.
            view_prompts_config: chooses the text for a camera.
            generator: on the CPU, so that every device sees the same noise; nothing else changes here.
            guidance_scale: s in uncond + s (cond - uncond); unused by "csd".
            t_min: lowest noise level over progress, a fraction of all levels.
            t_max: highest noise level.
            formula: "sds" or "csd".
            weighting: w(t).
            resolution: side in pixels at which the model looks, 0 for its own, -1 for the picture's.
            original_size: SDXL size condition, 0 for the resolution.
            target_size: SDXL size condition, 0 for the resolution.
            controls: ControlNets of the teacher's layout, which see the render's depth or normals.
            linear_encoder: pulls gradients back to the picture in place of the encoder.
        """
        expected = len(view_prompts("x", view_prompts_config))
        if len(positive.tokens) != expected or len(negative.tokens) != 1:
            found = (len(positive.tokens), len(negative.tokens))
            raise ValueError(f"there must be {expected} positive and 1 negative prompts encoded, got {found}")
        self.resolution = resolution or model.resolution
        if self.resolution > 0 and self.resolution % model.downscale:
            raise ValueError(f"resolution must be a multiple of {model.downscale}, got {self.resolution}")
        check_timestep_range(t_min, t_max)
        self.model, self.positive, self.negative = model, positive, negative
        self.view_prompts_config, self.generator = view_prompts_config, generator
        self.guidance_scale, self.formula, self.weighting = guidance_scale, formula, weighting
        self.t_min, self.t_max = t_min, t_max
        self.controls = tuple(controls)
        self.linear_encoder = linear_encoder
        self._sizes = (original_size, target_size)
        self._time_ids: dict[int, Tensor | None] = {}  # by resolution; making them waits for the device

    def __call__(
        self, image: Float[Tensor, "B H W 3"], rendering: Rendering, cameras: Cameras, progress: float
    ) -> GuidanceOutput:
        """Draw a noise level and noise for each picture and return the gradient on the pictures."""
        shape = self.model.latent_shape(len(image), self._side(image))
        return self.gradient(image, **self._draw(shape, rendering, cameras, progress))

    def latent_gradient(
        self, latents: Float[Tensor, "B C h w"], rendering: Rendering, cameras: Cameras, progress: float
    ) -> Float[Tensor, "B C h w"]:
        """The gradient on latents that are optimised themselves, with the draws that pictures would get."""
        draw = self._draw(latents.shape, rendering, cameras, progress)
        del draw["posterior_noise"]  # of the encoder, which has no part in this
        return self.score_gradient(latents, **draw, side=self._side(rendering.color))

    def _draw(
        self, shape: Sequence[int], rendering: Rendering, cameras: Cameras, progress: float
    ) -> dict[str, Any]:
        """Noise levels, noise and texts for latents of a shape, as `gradient` takes them."""
        timesteps = sample_timesteps(
            shape[0],
            self.t_min(progress),
            self.t_max(progress),
            train_steps=self.model.train_steps,
            generator=self.generator,
        )
        noise, posterior = torch.randn((2, *shape), generator=self.generator)
        texts = view_index(
            cameras.azimuth.to(self.model.device),
            cameras.elevation.to(self.model.device),
            rendering.background,
            self.view_prompts_config,
        )
        return {
            "timesteps": _send(timesteps, self.model.device),
            "noise": _send(noise, self.model.device),
            "posterior_noise": _send(posterior, self.model.device),
            "texts": texts,
            "conditions": [condition_image(control, rendering, cameras) for control in self.controls],
        }

    def _side(self, image: Float[Tensor, "B H W 3"]) -> int:
        """Pixels at which the model looks at these pictures."""
        side = image.shape[1] if self.resolution < 0 else self.resolution
        if side not in self._time_ids:
            original, target = self._sizes
            self._time_ids[side] = self.model.time_ids(original or side, target or side)
        return side

    def gradient(
        self,
        image: Float[Tensor, "B H W 3"],
        *,
        timesteps: Int[Tensor, " B"],
        noise: Float[Tensor, "B C h w"],
        posterior_noise: Float[Tensor, "B C h w"],
        texts: Int[Tensor, " B"],
        conditions: Sequence[Float[Tensor, "B H W 3"]] = (),
    ) -> GuidanceOutput:
        """The gradient for given noise and one condition per control; pictures do not influence each other.

        d loss / d image = J^T w(t) (eps_hat - eps) with the Jacobian J of resizing and encoding; the UNet's
        own Jacobian is left out (arXiv 2209.14988, eq. 3).
        """
        image, side = image.detach().requires_grad_(), self._side(image)
        with torch.set_grad_enabled(self.linear_encoder is None):
            latents = self.model.encode(resize(image, side), posterior_noise)
        latent_gradient = self.score_gradient(
            latents.detach(), timesteps=timesteps, noise=noise, texts=texts, conditions=conditions, side=side
        )
        if self.linear_encoder is None:
            gradient = self.model.encoder_gradient(image, latents, latent_gradient)
        else:
            gradient = self.linear_encoder.pull_back(latent_gradient, image.shape[1:3])
        return GuidanceOutput(
            gradient=gradient,
            metrics={
                "timestep": timesteps.float().mean(),
                "latent_gradient": latent_gradient.flatten(1).norm(dim=1).mean(),
            },
        )

    def score_gradient(
        self,
        latents: Float[Tensor, "B C h w"],
        *,
        timesteps: Int[Tensor, " B"],
        noise: Float[Tensor, "B C h w"],
        texts: Int[Tensor, " B"],
        side: int,
        conditions: Sequence[Float[Tensor, "B H W 3"]] = (),
    ) -> Float[Tensor, "B C h w"]:
        """What the latents should change by: w(t) (eps_hat - eps), or its variant of `formula`."""
        signal = self.model.alphas_cumprod[timesteps]
        controls = [(c, resize(shown, side)) for c, shown in zip(self.controls, conditions, strict=True)]
        unconditional, conditional = self.model.predict(
            add_noise(latents, noise, signal),
            timesteps,
            conditional=select(self.positive, texts),
            unconditional=select(self.negative, torch.zeros_like(texts)),
            time_ids=self._time_ids[side],
            residuals=partial(control_residuals, controls) if controls else None,
        )
        weights = score.weight(signal, self.weighting)
        if self.formula == "csd":
            return score.csd_gradient(unconditional, conditional, weights)
        guided = score.classifier_free_guidance(unconditional, conditional, self.guidance_scale)
        return score.sds_gradient(guided, noise, weights)


def resize(image: Float[Tensor, "B H W 3"], resolution: int) -> Float[Tensor, "B r r 3"]:
    """Bilinear, with the filter widened when shrinking, so that every pixel keeps a gradient."""
    if image.shape[1] == image.shape[2] == resolution:
        return image
    shrinks = max(image.shape[1:3]) > resolution
    resized = torch.nn.functional.interpolate(
        image.permute(0, 3, 1, 2), size=(resolution, resolution), mode="bilinear", antialias=shrinks
    )
    return resized.permute(0, 2, 3, 1)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
