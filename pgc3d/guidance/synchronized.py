"""Initial colours from views that are denoised together (SyncMVD, arXiv 2311.12891).

Views all around the object start from noise and are sampled by DDIM, each with its own text and with the
depth of the surface as the condition of a ControlNet. In the middle of the sampling, the clean images that
the model estimates are averaged on the surface, by visibility and angle, so that all views draw one object.
The representation is fitted to the result. Colours are averaged as images, not as latents: latents are not
the same for another rotation or size, and their mean is smeared.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d

from pgc3d.cameras import fill_distance, orbit
from pgc3d.context import GuidanceContext
from pgc3d.diffusion.controlnet import ControlConfig, condition_image
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.interfaces import Representation
from pgc3d.parameters import ParameterStore
from pgc3d.prompts import view_index
from pgc3d.ranges import check, number, schedule
from pgc3d.rendering.blend import Correspondence, correspond
from pgc3d.requirements import Requirements
from pgc3d.schedules import PiecewiseLinear, add_noise, clean_latents
from pgc3d.types import Cameras, Rendering, Step, Views

FIT_RATE = 2.0  # of the representation's own learning rates, at the first step of the fit
# Of Adam in the fit, in root mean squares of a group's gradients. Without it what is seen least, as the
# finest cells of a colour field, moves as far as all else and leaves speckle.
FIT_EPS = 1.0
Images = Float[Tensor, "V H W 3"]


@dataclass(frozen=True)
class SyncConfig:
    """Settings of the initial views; `controls` must condition on the geometry."""

    model: str = "text"  # an entry of `models`
    controls: dict[str, ControlConfig] = field(default_factory=dict)  # by a name of your choice
    negative_prompt: str = ""  # what the views should not show
    guidance_scale: float = number(7.5, 0.0, 1e4)  # s in uncond + s (cond - uncond)
    steps: int = number(20, 1, 1000)  # of the sampling
    views: int = number(8, 1, 64)  # around the object, at elevations in turn
    # Of the views around the object, in turn.
    elevation_degrees: tuple[float, ...] = number((15.0, -15.0), -89.0, 89.0, unit="degrees")
    # Elevations of further views from the front.
    more_elevation_degrees: tuple[float, ...] = number((80.0, -80.0), -89.0, 89.0, unit="degrees")
    fovy_degrees: float = number(40.0, 1.0, 120.0, unit="degrees")  # vertical field of view
    fill: float = number(0.95, 0.1, 1.5)  # of the image's half height, by the unit ball
    background: tuple[float, float, float] = number((0.5, 0.5, 0.5), 0.0, 1.0, unit="in sRGB")  # of the views
    # Fractions of the sampling between which the views are averaged on the surface.
    averaged_from: float = number(0.2, 0.0, 1.0)
    averaged_until: float = number(0.7, 0.0, 1.0)  # a fraction of the sampling
    # Over the sampling: exponent of the cosine between normal and view in the weights of the mean.
    sharpness: tuple[float, ...] = schedule((0.0, 0.0, 1.0, 6.0), 0.0, 100.0)
    fit_steps: int = number(80, 1, 10_000)  # of the representation to the views
    fit_views: int = number(2, 1, 64, unit="views")  # in each of them

    def __post_init__(self) -> None:
        check(self)
        if not self.elevation_degrees:
            raise ValueError("elevation_degrees must have at least one entry, got []")
        if self.averaged_from > self.averaged_until:
            raise ValueError(
                f"averaged_from must be at most averaged_until, got {self.averaged_from} and "
                f"{self.averaged_until}"
            )

    @property
    def count(self) -> int:
        """Number of views."""
        return self.views + len(self.more_elevation_degrees)

    def _guidance(self) -> SdsConfig:
        return SdsConfig(
            model=self.model,
            controls=self.controls,
            negative_prompt=self.negative_prompt,
            guidance_scale=self.guidance_scale,
        )

    def requires(self) -> Requirements:
        """Those of its model with decoder and ControlNets; none where no ControlNet is set."""
        if not self.controls:
            return Requirements()
        needed = self._guidance().requires()
        models = {name: replace(use, decoder=True) for name, use in needed.models.items()}
        return replace(needed, models=models)

    def build(self, context: GuidanceContext, *, micro_batch: int = 0) -> "SynchronizedViews | None":
        """What sets the initial colours; None where no ControlNet is set.

        Args:
            context: of the run.
            micro_batch: views that the model evaluates at once, 0 for all of them.
        """
        if not self.controls:
            return None
        guidance = self._guidance().build(context, decoder=True)
        return SynchronizedViews(self, guidance, micro_batch=micro_batch)

    def cameras(self) -> Cameras:
        """The cameras of the views, on the CPU."""
        elevations = [self.elevation_degrees[k % len(self.elevation_degrees)] for k in range(self.views)]
        azimuth = torch.cat([
            torch.arange(self.views) * (2 * torch.pi / self.views),
            torch.zeros(len(self.more_elevation_degrees)),
        ])  # fmt: skip
        elevation = torch.tensor([*elevations, *self.more_elevation_degrees]).deg2rad()
        fovy = torch.full_like(elevation, self.fovy_degrees).deg2rad()
        return orbit(azimuth, elevation, fill_distance(fovy, torch.full_like(fovy, self.fill)), fovy)


class SynchronizedViews:
    """Samples views together and fits a representation to them."""

    def __init__(self, config: SyncConfig, guidance: ScoreDistillation, *, micro_batch: int = 0) -> None:
        """Store the settings, and the text, model and ControlNets as a guidance with the VAE's decoder."""
        self.config, self.guidance = config, guidance
        self.micro_batch = micro_batch

    def __call__(self, representation: Representation, step: Step) -> None:
        """Set the parameters of a representation.

        Args:
            representation: with the surface that it has at its start.
            step: source of the random numbers.
        """
        device = self.guidance.model.device
        cameras = self.config.cameras().to(device)
        background = torch.tensor(self.config.background, device=device).expand(len(cameras), 3)
        views = Views(cameras, background)
        with torch.no_grad():
            renderings = [
                representation.render(view, self.guidance.resolution, None) for view in _each(views)
            ]
            shown = _joined(renderings)
            surface = correspond(shown, cameras)
            images = self.sample(shown, views, surface, step)
        fit(representation, images, shown, views, self.config, step)

    def sample(self, shown: Rendering, views: Views, surface: Correspondence, step: Step) -> Images:
        """The views, sampled together and averaged on the surface; sRGB in [0, 1]."""
        config, model, side = self.config, self.guidance.model, shown.depth.shape[1]
        count = len(views)
        generator = step.generator("initial views")
        latents = torch.randn(model.latent_shape(count, side), generator=generator).to(model.device)
        predict = self._predictor(shown, views, side)
        sharpness = PiecewiseLinear(config.sharpness)
        levels = _levels(model.train_steps, config.steps)
        clean, one = latents, torch.ones(count, device=model.device)
        for index, (level, following) in enumerate(pairwise([*levels, -1])):
            alpha = model.alphas_cumprod[level] * one
            noise = predict(latents, level)
            clean = clean_latents(latents, noise, alpha)
            done = (index + 1) / len(levels)
            if config.averaged_from <= done <= config.averaged_until:
                images = self._decode(clean)
                # The difference: what the autoencoder itself changes would add up from step to step.
                clean = clean + self._encode(surface.blend(images, sharpness(done))) - self._encode(images)
            after = model.alphas_cumprod[following] * one if following >= 0 else one
            latents = add_noise(clean, noise, after)
        return surface.blend(self._decode(clean), sharpness(1.0)).clamp(0.0, 1.0)

    def _predictor(
        self, shown: Rendering, views: Views, side: int
    ) -> Callable[[Float[Tensor, "V C h w"], int], Float[Tensor, "V C h w"]]:
        """The noise with guidance, in micro-batches, as a function of noisy latents and their timestep."""
        guidance = self.guidance
        texts = view_index(
            views.cameras.azimuth, views.cameras.elevation, views.background, guidance.view_prompts_config
        )
        conditions = [condition_image(control, shown, views.cameras) for control in guidance.controls]
        parts = _parts(len(views), self.micro_batch)
        predictors = [
            guidance.predictor(side, texts=texts[part], conditions=[image[part] for image in conditions])
            for part in parts
        ]

        def predict(noisy: Tensor, level: int) -> Tensor:
            found = []
            for part, of_part in zip(parts, predictors, strict=True):
                rows = noisy[part]
                timesteps = torch.full((len(rows),), level, device=noisy.device)
                without, with_text, *_ = of_part(rows, timesteps)
                found.append(without + self.config.guidance_scale * (with_text - without))
            return torch.cat(found)

        return predict

    def _decode(self, latents: Float[Tensor, "V C h w"]) -> Images:
        parts = _parts(len(latents), self.micro_batch)
        return torch.cat([self.guidance.model.decode(latents[part]) for part in parts])

    def _encode(self, images: Images) -> Float[Tensor, "V C h w"]:
        """The means of the posterior."""
        model, found = self.guidance.model, []
        for part in _parts(len(images), self.micro_batch):
            shape = model.latent_shape(len(images[part]), images.shape[1])
            found.append(model.encode(images[part], torch.zeros(shape, device=images.device)))
        return torch.cat(found)


def fit(
    representation: Representation,
    images: Images,
    shown: Rendering,
    views: Views,
    config: SyncConfig,
    step: Step,
) -> None:
    """Fit the colours of a representation to images of views, inside the silhouette, by Adam.

    The loss is the mean absolute difference, whose minimum is a median where views differ.
    """
    store = ParameterStore([
        {**group, "lr": FIT_RATE * group["lr"], "relative_eps": FIT_EPS}
        for group in representation.parameter_store().groups
    ])  # fmt: skip
    store.use_adam()
    always = torch.ones((), dtype=torch.bool, device=images.device)
    order = torch.randperm(len(views), generator=step.generator("fitted views"))
    side = images.shape[1]
    inside = _eroded(shown.alpha)
    for index in range(config.fit_steps):
        chosen = [int(order[(index * config.fit_views + k) % len(order)]) for k in range(config.fit_views)]
        rows = torch.tensor(chosen, device=images.device)
        rendered = representation.render(_rows(views, rows), side, step)
        weight = inside[rows]
        loss = ((rendered.color - images[rows]).abs() * weight).sum() / weight.sum().clamp_min(1.0)
        store.zero_grad()
        torch.autograd.backward(loss)
        store.step(always, lr_scale=1.0 - index / config.fit_steps)
    store.zero_grad()


def _levels(train_steps: int, steps: int) -> list[int]:
    """Timesteps from the last one down, evenly spaced ("trailing", arXiv 2305.08891, section 3.3)."""
    places = torch.linspace(train_steps, 0, steps + 1)[:-1]
    return [int(place) - 1 for place in places.round()]


def _parts(count: int, size: int) -> list[slice]:
    """The rows of micro-batches of `size`, all at once for 0."""
    size = size or count
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _rows(views: Views, rows: Int[Tensor, " B"] | slice) -> Views:
    return Views(views.cameras[rows], views.background[rows])


def _each(views: Views) -> Iterator[Views]:
    return (_rows(views, slice(row, row + 1)) for row in range(len(views)))


def _joined(renderings: Sequence[Rendering]) -> Rendering:
    """Renderings of single views as one."""
    names = ("color", "normal", "depth", "alpha", "background")
    return Rendering(**{name: torch.cat([getattr(one, name) for one in renderings]) for name in names})


def _eroded(alpha: Float[Tensor, "V H W 1"]) -> Float[Tensor, "V H W 1"]:
    """1 where a pixel and all its neighbours are covered, else 0."""
    empty = max_pool2d(1.0 - alpha.permute(0, 3, 1, 2), 3, stride=1, padding=1)
    return (empty <= 0).float().permute(0, 2, 3, 1)
