"""Score distillation from a latent diffusion model, as a gradient on the image."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.diffusion.controlnet import Control, condition_image, control_residuals
from pgc3d.diffusion.latent import LatentDiffusion, Latents, interpolate, select
from pgc3d.diffusion.linear_encoder import LinearEncoder
from pgc3d.guidance import score
from pgc3d.guidance.distillation import (
    NoiseSample,
    Predict,
    distill,
    distill_latents,
    draw,
    predict_noise,
)
from pgc3d.guidance.formulas import Formula, Predictions, SdsFormula
from pgc3d.guidance.micro_batch import in_micro_batches
from pgc3d.guidance.perp_neg import ViewMixture, mixture
from pgc3d.images import resize
from pgc3d.prompts import view_index, view_prompts
from pgc3d.schedules import PiecewiseLinear, check_timestep_range
from pgc3d.types import GuidanceOutput, Rendering, Step, TextEmbedding, Views
from pgc3d.view_prompts import ViewPromptConfig


def needs_unconditional(formula: Formula, guidance_scale: float, perp_neg: float) -> bool:
    """Whether the UNet must be evaluated for the negative prompt."""
    return perp_neg > 0 or formula.needs_unconditional(guidance_scale)


class ScoreDistillation:
    """Score distillation from a frozen text-to-image model; an `interfaces.Guidance`."""

    def __init__(  # noqa: PLR0913 - flat on purpose
        self,
        *,
        model: LatentDiffusion,
        positive: TextEmbedding,
        negative: TextEmbedding,
        view_prompts_config: ViewPromptConfig,
        guidance_scale: float = 100.0,
        t_min: PiecewiseLinear = PiecewiseLinear((0.02,)),  # noqa: B008 - immutable
        t_max: PiecewiseLinear = PiecewiseLinear((0.98,)),  # noqa: B008
        formula: Formula = SdsFormula(),  # noqa: B008
        perp_neg: float = 0.0,
        weighting: score.Weighting = "sigma2",
        resolution: int = 0,
        original_size: int = 0,
        target_size: int = 0,
        controls: Sequence[Control] = (),
        linear_encoder: LinearEncoder | None = None,
        linear_until: float = 1.0,
        as_latent: bool = False,
    ) -> None:  # fmt: skip
        """Store the inputs of every step on the device.

        Args:
            model: the guidance model.
            positive: one entry per text of `view_prompts(prompt, view_prompts_config)`, in that order.
            negative: the negative prompt, and the formula's own texts.
            view_prompts_config: chooses the text for a camera.
            guidance_scale: s in uncond + s (cond - uncond), for formulas that have none of their own.
            t_min: lowest timestep over progress, a fraction of all timesteps.
            t_max: highest timestep, likewise.
            formula: see `formulas`.
            perp_neg: factor of the weights of Perp-Neg, 0 for none.
            weighting: w(t).
            resolution: side in pixels of the model's input, 0 for its own, -1 for the rendering's.
            original_size: SDXL size condition, 0 for the resolution.
            target_size: SDXL size condition, 0 for the resolution.
            controls: ControlNets of the model's layout, conditioned on the render's depth or normals.
            linear_encoder: pulls gradients back to the image in place of the encoder.
            linear_until: progress of the run after which it does not.
            as_latent: images have four channels and are the latents.
        """
        expected = len(view_prompts("x", view_prompts_config))
        others = 1 + len(formula.texts)
        if len(positive.tokens) != expected or len(negative.tokens) != others:
            given = (len(positive.tokens), len(negative.tokens))
            raise ValueError(f"there must be embeddings of {expected} and {others} prompts, got {given}")
        self.resolution = resolution or model.resolution
        if self.resolution > 0 and self.resolution % model.downscale:
            raise ValueError(f"resolution must be a multiple of {model.downscale}, got {self.resolution}")
        check_timestep_range(t_min, t_max)
        self.model, self.positive, self.negative = model, positive, negative
        self.view_prompts_config = view_prompts_config
        self.guidance_scale, self.formula, self.weighting = guidance_scale, formula, weighting
        self.perp_neg = perp_neg
        self.guided = needs_unconditional(formula, guidance_scale, perp_neg)
        self.t_min, self.t_max = t_min, t_max
        self.controls = tuple(controls)
        self.linear_encoder, self.linear_until, self.as_latent = linear_encoder, linear_until, as_latent
        self.micro_batch = 0  # see `interfaces.SupportsMicroBatch`
        self._sizes = (original_size, target_size)
        self._time_ids: dict[int, Tensor | None] = {}  # by resolution; making them waits for the device

    def input_resolution(self, rendered: int) -> int:
        """Side in pixels of the images that are evaluated, for renders of `rendered` pixels."""
        side = rendered if self.resolution < 0 else self.resolution
        return side // self._pixels

    @property
    def _pixels(self) -> int:
        """Side of a pixel of the evaluated images, in those of the model's input."""
        return self.model.downscale if self.as_latent else 1

    def __call__(
        self, image: Float[Tensor, "B H W _"], rendering: Rendering, views: Views, step: Step
    ) -> GuidanceOutput:
        """Draw a timestep and noise for each image and return the gradient on the images."""
        inputs = self.draw(len(image), image.shape[1] * self._pixels, rendering, views, step)
        gradient = partial(self.gradient, progress=step.progress)
        return in_micro_batches(gradient, self.micro_batch, image=image, **inputs)

    def latent_gradient(
        self, latents: Float[Tensor, "B C h w"], rendering: Rendering, views: Views, step: Step
    ) -> Float[Tensor, "B C h w"]:
        """The gradient on latents that are optimised directly, with the same noise as for images.

        They must have the size of the latents of `rendering`.
        """
        side = latents.shape[-1] * self.model.downscale
        inputs = self.draw(len(latents), side, rendering, views, step)
        sample, shown = NoiseSample.split(inputs)
        return self._score(latents, sample, side, step.progress, **shown)

    def draw(self, batch: int, side: int, rendering: Rendering, views: Views, step: Step) -> dict[str, Any]:
        """The arguments of `gradient` for a step, each with one row for each image.

        Args:
            batch: number of images.
            side: of the model's input in pixels.
            rendering: for the conditions of ControlNets.
            views: cameras and background colours.
            step: source of the random numbers.
        """
        timestep_range = self.t_min(step.progress), self.t_max(step.progress)
        sample = draw(self.model, batch, side, timestep_range, step)
        cameras = views.cameras
        texts = view_index(
            cameras.azimuth.to(self.model.device),
            cameras.elevation.to(self.model.device),
            rendering.background,
            self.view_prompts_config,
        )
        conditions = [condition_image(control, rendering, cameras) for control in self.controls]
        mixed: Sequence[Tensor] = ()
        if self.perp_neg:
            config, device = self.view_prompts_config, self.model.device
            shown = Views(cameras, rendering.background)
            mixed = mixture(shown, config, device, self.perp_neg).tensors()
        return {**vars(sample), "texts": texts, "conditions": conditions, "mixed": mixed}

    def size_conditions(self, side: int) -> Float[Tensor, "1 6"] | None:
        """SDXL's size conditions for inputs of `side` pixels, made once."""
        if side not in self._time_ids:
            original, target = self._sizes
            self._time_ids[side] = self.model.time_ids(original or side, target or side)
        return self._time_ids[side]

    def gradient(
        self,
        image: Float[Tensor, "B H W _"],
        *,
        timesteps: Int[Tensor, " B"],
        noise: Float[Tensor, "B C h w"],
        posterior_noise: Float[Tensor, "B C h w"],
        texts: Int[Tensor, " B"],
        conditions: Sequence[Float[Tensor, "B _ _ 3"]] = (),
        mixed: Sequence[Tensor] = (),
        progress: float = 0.0,
    ) -> GuidanceOutput:
        """The gradient for given noise, texts and one condition per control; see `distill`.

        Args:
            image: sRGB in [0, 1]; the latents, where they are the image.
            timesteps: see `NoiseSample`.
            noise: see `NoiseSample`.
            posterior_noise: see `NoiseSample`.
            texts: indices of the prompts.
            conditions: of the ControlNets.
            mixed: the fields of a `ViewMixture`, for Perp-Neg.
            progress: of the run, in [0, 1].
        """
        sample = NoiseSample(timesteps, noise, posterior_noise)

        def score_of(latents: Latents) -> Latents:
            side = image.shape[1] * self._pixels
            return self._score(
                latents, sample, side, progress, texts=texts, conditions=conditions, mixed=mixed
            )

        if self.as_latent:
            return distill_latents(image, sample, score_of)
        linear = self.linear_encoder if progress <= self.linear_until else None
        return distill(self.model, image, sample, score_of, linear_encoder=linear)

    def predict(self, latents: Latents, sample: NoiseSample, side: int, **shown: Any) -> Predictions:
        """The frozen model's predictions for the latents of images of `side` pixels.

        Args:
            latents: z.
            sample: timesteps and noise.
            side: of the model's input in pixels.
            shown: texts, conditions and mixed, as of `gradient`.
        """
        return predict_noise(self.model, latents, sample, self.predictor(side, **shown))

    def predictor(
        self,
        side: int,
        *,
        texts: Int[Tensor, " B"],
        conditions: Sequence[Float[Tensor, "B _ _ 3"]] = (),
        mixed: Sequence[Tensor] = (),
    ) -> Predict:
        """The frozen model's predictions as a function of noisy latents and timesteps; see `predict`.

        The first is the conditional one where the unconditional one is not needed.
        """
        controls = [(c, resize(shown, side)) for c, shown in zip(self.controls, conditions, strict=True)]
        prompts = [
            select(self.negative, torch.full_like(texts, row)) for row in range(len(self.negative.tokens))
        ]
        views = ViewMixture(*mixed) if mixed else None
        prompts[1:1] = [select(self.positive, texts) if views is None else self._positive(views)]
        if not self.guided:
            del prompts[0]
        if views is not None:
            prompts += [select(self.positive, index) for index in views.negatives.unbind(1)]

        def predict(noisy: Latents, timesteps: Tensor) -> tuple[Latents, ...]:
            found = self.model.predict_each(
                noisy,
                timesteps,
                prompts,
                time_ids=self.size_conditions(side),
                residuals=partial(control_residuals, controls) if controls else None,
            )
            if not self.guided:
                return found[0], *found
            if views is None:
                return found
            unconditional, conditional, *others = found
            negatives = [others.pop(-2), others.pop(-1)]
            return (
                unconditional,
                score.perp_neg(unconditional, conditional, negatives, views.weights),
                *others,
            )

        return predict

    def _positive(self, views: ViewMixture) -> TextEmbedding:
        first, second = select(self.positive, views.first), select(self.positive, views.second)
        return interpolate(first, second, views.fraction)

    def _score(
        self, latents: Latents, sample: NoiseSample, side: int, progress: float, **shown: Any
    ) -> Latents:
        found = self.predict(latents, sample, side, **shown)
        weights = score.weight(found.alphas_cumprod, self.weighting)
        return self.formula.gradient(found, weights, guidance_scale=self.guidance_scale, progress=progress)
