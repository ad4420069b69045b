"""The distance of an image from its denoised version, of a few steps (HiFA, arXiv 2305.18766)."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.context import GuidanceContext
from pgc3d.diffusion.latent import Latents
from pgc3d.guidance import score
from pgc3d.guidance.distillation import NoiseSample, distill
from pgc3d.guidance.micro_batch import in_micro_batches
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.ranges import MAX_WEIGHT, check, number, span
from pgc3d.requirements import Requirements
from pgc3d.schedules import add_noise, ddim_step
from pgc3d.types import GuidanceOutput, Rendering, Step, Views


@dataclass(frozen=True)
class BgtConfig:
    """Settings of the denoised target; those of the same name as in `SdsConfig` mean the same.

    The timestep falls from the end of `timesteps` to its start with the square root of progress, and latents
    are denoised from there in steps of at most `stride`; all three are those of the code of PGC-3D, which
    names the method BGT+. `latent` and `image` are weights of half the sums of squared differences, HiFA's
    constant 0.05 and a tenth of it; the losses of PGC-3D are means, with gradients far below any threshold.
    """

    kind: Literal["bgt"] = "bgt"
    model: str = "text"  # an entry of `models`
    guidance_scale: float = number(100.0, 0.0, 1e4)  # s in uncond + s (cond - uncond)
    negative_prompt: str = ""  # what the images should not show
    timesteps: tuple[float, float] = span((0.25, 0.681), 0.0, 1.0)  # first and last, as fractions
    stride: float = number(0.25, 0.01, 1.0)  # longest step of the denoising, as a fraction
    latent: float = number(0.05, 0.0, MAX_WEIGHT)  # weight of the difference of latents
    image: float = number(0.005, 0.0, MAX_WEIGHT)  # of that of colours
    # Side of the model's input.
    resolution: int = number(
        0, 8, 4096, unit="pixels", multiple=8, also={0: "the model's own", -1: "the rendering's"}
    )

    def __post_init__(self) -> None:
        check(self)
        self._frozen()  # its settings check themselves

    def requires(self) -> Requirements:
        """A prompt, and a text-to-image model with its decoder."""
        frozen = self._frozen().requires()
        steps = math.ceil(self.timesteps[1] / self.stride)
        use = frozen.models[self.model]
        use = replace(use, decoder=True, evaluations=use.evaluations * max(steps, 1))
        return replace(frozen, models={self.model: use})

    def _frozen(self) -> SdsConfig:
        return SdsConfig(
            model=self.model,
            guidance_scale=self.guidance_scale,
            negative_prompt=self.negative_prompt,
            resolution=self.resolution,
        )

    def input_resolution(self, rendered: int, model: int) -> int:
        """Side of the model's input in pixels, for renders and for a model of such sides."""
        return self._frozen().input_resolution(rendered, model)

    def build(self, context: GuidanceContext) -> "DenoisedTarget":
        """The guidance over the frozen model."""
        return DenoisedTarget(
            frozen=self._frozen().build(context, decoder=True),
            timesteps=self.timesteps,
            stride=self.stride,
            latent=self.latent,
            image=self.image,
        )


class DenoisedTarget:
    """The squared differences of latents and colours from denoised ones; an `interfaces.Guidance`."""

    def __init__(
        self,
        *,
        frozen: ScoreDistillation,
        timesteps: tuple[float, float] = (0.25, 0.681),
        stride: float = 0.25,
        latent: float = 0.05,
        image: float = 0.005,
    ) -> None:
        """Store the inputs of every step on the device.

        Args:
            frozen: the model with its prompts, scale and resolution.
            timesteps: last and first one, as fractions.
            stride: longest denoising step, as a fraction.
            latent: weight of the difference of latents.
            image: weight of the difference of colours.
        """
        self.frozen, self.timesteps, self.stride = frozen, timesteps, stride
        self.latent, self.image = latent, image
        self.micro_batch = 0  # see `interfaces.SupportsMicroBatch`

    def input_resolution(self, rendered: int) -> int:
        """Side in pixels of the model's input, for renders of `rendered` pixels."""
        return self.frozen.input_resolution(rendered)

    def levels(self, progress: float) -> list[int]:
        """The timesteps of the denoising steps, from the first one down; the last step ends without noise."""
        low, high = self.timesteps
        first, train_steps = high - (high - low) * math.sqrt(progress), self.frozen.model.train_steps
        count = max(math.ceil(first / self.stride - 1e-9), 1)
        fractions = [max(first - index * self.stride, 0.0) for index in range(count)]
        return [min(round(fraction * train_steps), train_steps - 1) for fraction in fractions]

    def __call__(
        self, image: Float[Tensor, "B H W 3"], rendering: Rendering, views: Views, step: Step
    ) -> GuidanceOutput:
        """Draw noise for each image and return the gradient on the images."""
        levels = self.levels(step.progress)
        inputs = self.frozen.draw(len(image), image.shape[1], rendering, views, step)
        inputs["timesteps"] = torch.full_like(inputs["timesteps"], levels[0])
        gradient = partial(self.gradient, levels=levels)
        return in_micro_batches(gradient, self.micro_batch, image=image, **inputs)

    def gradient(
        self, image: Float[Tensor, "B H W 3"], *, levels: list[int], **inputs: Any
    ) -> GuidanceOutput:
        """The gradient of latent / 2 |z - z'|^2 + image / 2 |x - x'|^2 with z' and x' held constant.

        z' is z with noise after the denoising steps, and x' its decoded image.

        Args:
            image: sRGB in [0, 1].
            levels: see `levels`.
            inputs: see `ScoreDistillation.gradient`.
        """
        sample, shown = NoiseSample.split(inputs)
        target: list[Tensor] = []

        def score_of(latents: Latents) -> Latents:
            target.append(self._denoise(latents, sample.noise, levels, image.shape[1], **shown))
            return self.latent * (latents - target[0])

        output = distill(self.frozen.model, image, sample, score_of)
        difference = image - self.frozen.model.decode(target[0])
        return replace(output, gradient=output.gradient + self.image * difference)

    def _denoise(
        self, latents: Latents, noise: Latents, levels: list[int], side: int, **shown: Any
    ) -> Latents:
        """The latents with noise of the first level, denoised by DDIM with classifier-free guidance."""
        model, batch = self.frozen.model, len(latents)
        predict = self.frozen.predictor(side, **shown)
        alphas = [model.alphas_cumprod[level].expand(batch) for level in levels]
        alphas.append(torch.ones_like(alphas[0]))
        noisy = add_noise(latents, noise, alphas[0])
        for index, level in enumerate(levels):
            timesteps = torch.full((batch,), level, device=model.device)
            unconditional, conditional, *_ = predict(noisy, timesteps)
            guided = score.classifier_free_guidance(unconditional, conditional, self.frozen.guidance_scale)
            noisy = ddim_step(noisy, guided, alphas[index], alphas[index + 1])
        return noisy
