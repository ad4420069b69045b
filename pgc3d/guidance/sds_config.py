"""The settings of score distillation from a latent diffusion model."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from pgc3d.context import GuidanceContext
from pgc3d.diffusion.controlnet import Control, ControlConfig
from pgc3d.diffusion.latent import LatentDiffusion, select
from pgc3d.diffusion.linear_encoder import read_linear_encoder
from pgc3d.diffusion.style import with_style
from pgc3d.errors import ConfigError
from pgc3d.guidance import score
from pgc3d.guidance.formulas import FormulaConfig, SdsFormula
from pgc3d.guidance.perp_neg import require_views
from pgc3d.guidance.sds import ScoreDistillation, needs_unconditional
from pgc3d.guidance.timesteps import DreamTimeConfig, timestep_range
from pgc3d.prompts import view_prompts
from pgc3d.ranges import PATH, check, number, schedule
from pgc3d.requirements import ModelUse, Requirements
from pgc3d.schedules import PiecewiseLinear, check_timestep_range


@dataclass(frozen=True)
class SdsConfig:
    """Settings of score distillation.

    A guidance scale of 1 is for models that were distilled with their guidance (SDXL-Turbo, Lightning, LCM
    and their LoRAs): the UNet is evaluated for the prompt alone, in half the time.

    `t_min` and `t_max` are schedules (see `PiecewiseLinear`) of the timestep range, as fractions. Sizes are
    in pixels; `resolution` 0 means the model's own and -1 the rendering's, for models trained at several
    sizes. `original_size` and `target_size` are SDXL's size conditions, 0 for the resolution.
    `linear_encoder` is a file of `scripts/fit_linear_encoder.py`, through which gradients then go instead of
    the encoder until `linear_until`, a fraction of the stage. `dreamtime` replaces `t_min` and `t_max`.

    With `as_latent` the image is not encoded: the colours or normals in [-1, 1] and the coverage, shrunk to
    the size of the latents, are the latents (Fantasia3D's first phase, arXiv 2303.13873). A threshold of the
    clip is then that of a latent pixel's four channels, w(t) |eps_hat - eps|, and not of an image's pixel:
    such gradients are longer by far, and a clip of kind `adaptive` finds their length.
    """

    kind: Literal["sds"] = "sds"
    model: str = "text"  # an entry of `models`
    formula: FormulaConfig = field(default_factory=SdsFormula)
    # s in uncond + s (cond - uncond), of the formula sds; others have their own, or none
    guidance_scale: float = number(100.0, 0.0, 1e4)
    negative_prompt: str = ""  # what the images should not show
    perp_neg: float = number(
        0.0, 0.0, 100.0
    )  # factor of Perp-Neg's weights, 1 for the published ones; 0: off
    t_min: tuple[float, ...] = schedule((0.02,), 0.0, 1.0)  # lowest timestep
    t_max: tuple[float, ...] = schedule((0.0, 0.98, 0.5, 0.5), 0.0, 1.0)  # highest timestep
    dreamtime: DreamTimeConfig | None = None
    weighting: score.Weighting = "sigma2"  # w(t): 1 - abar, sqrt(abar) (1 - abar), or 1
    # Side of the model's input.
    resolution: int = number(
        0, 8, 4096, unit="pixels", multiple=8, also={0: "the model's own", -1: "the rendering's"}
    )
    original_size: int = number(0, 0, 16384, unit="pixels")  # SDXL's size condition; 0 is the resolution
    target_size: int = number(0, 0, 16384, unit="pixels")  # SDXL's size condition; 0 is the resolution
    controls: dict[str, ControlConfig] = field(default_factory=dict)  # by a name of your choice
    # A file of `scripts/fit_linear_encoder.py`.
    linear_encoder: str | None = field(default=None, metadata=PATH)
    linear_until: float = number(1.0, 0.0, 1.0)  # progress of the stage until which it is used
    as_latent: bool = False  # renders are the latents

    def __post_init__(self) -> None:
        check(self)
        if self.as_latent and self.linear_encoder is not None:
            raise ValueError("as_latent must go without a linear_encoder, got both; remove one")
        if self.negative_prompt and not self._needs_unconditional:
            raise ValueError(
                f"negative_prompt must be empty where it has no effect, got {self.negative_prompt!r} with "
                "guidance_scale 1; use a larger scale or remove it"
            )
        check_timestep_range(PiecewiseLinear(self.t_min), PiecewiseLinear(self.t_max))

    def requires(self) -> Requirements:
        """A prompt, and a text-to-image model with its ControlNets; a style image can be used."""
        files = {("guidance.linear_encoder", self.linear_encoder)} if self.linear_encoder else ()
        return Requirements(
            prompt=True,
            accepts=frozenset({"style"}),
            models={self.model: self._use()},
            files=frozenset(files),
        )

    def _use(self) -> ModelUse:
        names = dict.fromkeys(control.model for control in self.controls.values())
        return ModelUse(
            layouts=("sdxl", "sd"),
            controls=tuple(names),
            evaluations=self.evaluations,
            encodes=not self.as_latent,
        )

    @property
    def evaluations(self) -> int:
        """Evaluations of the UNet for each image."""
        texts = 1 + self._needs_unconditional + len(self.formula.texts)
        return texts + (2 if self.perp_neg else 0)

    @property
    def _needs_unconditional(self) -> bool:
        return needs_unconditional(self.formula, self.guidance_scale, self.perp_neg)

    def input_resolution(self, rendered: int, model: int) -> int:
        """Side of the model's input in pixels, for renders and for a model of such sides."""
        return rendered if self.resolution < 0 else self.resolution or model

    def build(self, context: GuidanceContext, *, decoder: bool = False) -> "ScoreDistillation":
        """The guidance; prompts and the style are encoded before the network is loaded, for a lower peak.

        The prompt's texts have the style image, the negative prompt and the formula's texts an empty one.

        Args:
            context: of the run.
            decoder: keep the VAE's decoder, for a guidance over this one.
        """
        views = context.models.view_prompts(self.model)
        texts = view_prompts(context.prompt, views)
        if self.perp_neg:
            require_views(views, self.model)
        encoded = context.models.embed(self.model, (*texts, self.negative_prompt, *self.formula.texts))
        style = context.models.style(self.model)
        loaded = context.models.get(self.model, replace(self._use(), decoder=decoder))
        index = torch.arange(len(encoded.tokens), device=loaded.diffusion.device)
        positive, negative = select(encoded, index[: len(texts)]), select(encoded, index[len(texts) :])
        if style is not None:
            positive, negative = with_style(positive, style.image), with_style(negative, style.empty)
        if self.as_latent:
            _require_four_channels(loaded.diffusion, loaded.folder.name)
        linear = self.linear_encoder
        return ScoreDistillation(
            model=loaded.diffusion,
            positive=positive,
            negative=negative,
            view_prompts_config=views,
            guidance_scale=self.guidance_scale,
            **timestep_range(self.t_min, self.t_max, self.dreamtime),
            formula=self.formula,
            perp_neg=self.perp_neg,
            weighting=self.weighting,
            resolution=self.resolution,
            original_size=self.original_size,
            target_size=self.target_size,
            controls=[
                Control(loaded.controls[item.model], item.condition, item.scale, item.polarity)
                for item in self.controls.values()
            ],
            linear_encoder=read_linear_encoder(Path(linear), loaded.diffusion) if linear else None,
            linear_until=self.linear_until,
            as_latent=self.as_latent,
        )


def _require_four_channels(model: LatentDiffusion, name: str) -> None:
    channels = model.latent_shape(1, model.resolution)[1]
    if channels != 4:
        raise ConfigError(
            f"as_latent must go with a model of 4 latent channels, got {channels} of {name}; use "
            "as_latent=false"
        )
