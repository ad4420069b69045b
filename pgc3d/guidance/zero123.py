"""Score distillation from a novel-view model that is conditioned on the input image."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.context import GuidanceContext
from pgc3d.diffusion.latent import Latents
from pgc3d.diffusion.zero123 import Zero123, relative_pose
from pgc3d.guidance import score
from pgc3d.guidance.distillation import NoiseSample, distill, draw, score_latents
from pgc3d.guidance.micro_batch import in_micro_batches
from pgc3d.ranges import check, number, schedule
from pgc3d.requirements import ModelUse, Requirements
from pgc3d.schedules import PiecewiseLinear, check_timestep_range
from pgc3d.types import Cameras, GuidanceOutput, Rendering, Step, Views


@dataclass(frozen=True)
class Zero123Config:
    """Novel-view score distillation at the model's own resolution; `t_min` and `t_max` as in `SdsConfig`."""

    kind: Literal["zero123"] = "zero123"
    model: str = "image"  # an entry of `models`
    guidance_scale: float = number(3.0, 0.0, 1e4)  # s in uncond + s (cond - uncond)
    t_min: tuple[float, ...] = schedule((0.0, 0.4, 0.33, 0.2), 0.0, 1.0)  # lowest timestep
    t_max: tuple[float, ...] = schedule((0.0, 0.85, 0.33, 0.5), 0.0, 1.0)  # highest timestep
    weighting: score.Weighting = "sigma2"  # w(t), as in `SdsConfig`

    def __post_init__(self) -> None:
        check(self)
        check_timestep_range(PiecewiseLinear(self.t_min), PiecewiseLinear(self.t_max))

    def requires(self) -> Requirements:
        """An input image, and a novel-view model."""
        return Requirements(inputs=frozenset({"image"}), models={self.model: self._use()})

    def _use(self) -> ModelUse:
        return ModelUse(layouts=("zero123",))

    def input_resolution(self, rendered: int, model: int) -> int:
        """The model's own side in pixels."""
        return model

    def build(self, context: GuidanceContext) -> "NovelViewDistillation":
        """The guidance, with the model conditioned on the input image."""
        return NovelViewDistillation(
            model=context.models.novel_view(self.model, self._use(), context.image()),
            reference=context.reference,
            guidance_scale=self.guidance_scale,
            t_min=PiecewiseLinear(self.t_min),
            t_max=PiecewiseLinear(self.t_max),
            weighting=self.weighting,
        )


class NovelViewDistillation:
    """Score distillation from a frozen Zero123; an `interfaces.Guidance`."""

    def __init__(
        self,
        *,
        model: Zero123,
        reference: Cameras,
        guidance_scale: float = 3.0,
        t_min: PiecewiseLinear = PiecewiseLinear((0.02,)),  # noqa: B008 - immutable
        t_max: PiecewiseLinear = PiecewiseLinear((0.98,)),  # noqa: B008
        weighting: score.Weighting = "sigma2",
    ) -> None:
        """Store the inputs of every step on the device.

        Args:
            model: the guidance model, conditioned on the input image.
            reference: the camera of the input image, one view, on the model's device.
            guidance_scale: s in uncond + s (cond - uncond).
            t_min: lowest timestep over progress, a fraction of all timesteps.
            t_max: highest timestep, likewise.
            weighting: w(t).
        """
        if len(reference) != 1:
            raise ValueError(f"reference must be one camera, got {len(reference)}")
        check_timestep_range(t_min, t_max)
        self.model, self.reference = model, reference
        self.guidance_scale, self.weighting = guidance_scale, weighting
        self.t_min, self.t_max = t_min, t_max
        self.micro_batch = 0  # see `interfaces.SupportsMicroBatch`

    def input_resolution(self, rendered: int) -> int:
        """Side in pixels of the model's input, whatever the rendering's."""
        return self.model.diffusion.resolution

    def __call__(
        self, image: Float[Tensor, "B H W 3"], rendering: Rendering, views: Views, step: Step
    ) -> GuidanceOutput:
        """Draw a timestep and noise for each image and return the gradient on the images."""
        timestep_range = self.t_min(step.progress), self.t_max(step.progress)
        sample = draw(self.model.diffusion, len(image), image.shape[1], timestep_range, step)
        pose = relative_pose(views.cameras, self.reference, self.model.pose)
        return in_micro_batches(self.gradient, self.micro_batch, image=image, pose=pose, **vars(sample))

    def gradient(
        self,
        image: Float[Tensor, "B H W 3"],
        *,
        pose: Float[Tensor, "B 4"],
        timesteps: Int[Tensor, " B"],
        noise: Float[Tensor, "B C h w"],
        posterior_noise: Float[Tensor, "B C h w"],
    ) -> GuidanceOutput:
        """The gradient for given noise and poses (see `relative_pose`); see `distill`."""
        sample = NoiseSample(timesteps, noise, posterior_noise)

        def predict(noisy: Latents, timesteps: Tensor) -> tuple[Latents, Latents]:
            return self.model.predict(noisy, timesteps, pose)

        def score_of(latents: Latents) -> Latents:
            return score_latents(
                self.model.diffusion,
                latents,
                sample,
                predict,
                guidance_scale=self.guidance_scale,
                weighting=self.weighting,
            )

        return distill(self.model.diffusion, image, sample, score_of)
