"""The formulas of score distillation as members of a family; `score` has them as functions.

A formula names the texts whose predictions it needs beside those of the prompt and the negative prompt;
whether it needs the latter is a method. All of them are evaluated in one batch of the UNet, so that their
number is what a formula costs.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pgc3d.guidance import score
from pgc3d.guidance.score import Latents
from pgc3d.ranges import check, number, schedule
from pgc3d.schedules import PiecewiseLinear, clean_latents

BAD_QUALITY = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)


@dataclass(frozen=True)
class Predictions:
    """The noise that a model predicts for noisy latents, and what the latents were made from."""

    latents: Float[Tensor, "B C h w"]  # z
    noisy: Float[Tensor, "B C h w"]  # z_t
    noise: Float[Tensor, "B C h w"]  # eps
    alphas_cumprod: Float[Tensor, " B"]
    time: Float[Tensor, " B"]  # timestep as a fraction of the model's number of timesteps
    # For the negative prompt, empty by default; the conditional one where the formula does not need it.
    unconditional: Float[Tensor, "B C h w"]
    conditional: Float[Tensor, "B C h w"]  # for the prompt
    others: tuple[Float[Tensor, "B C h w"], ...] = ()  # for the formula's own texts

    def clean(self, noise: Latents) -> Latents:
        """The clean latents of a prediction."""
        return clean_latents(self.noisy, noise, self.alphas_cumprod)


@runtime_checkable
class Formula(Protocol):
    """A configuration of the family."""

    @property
    def kind(self) -> str: ...

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts to predict the noise for, beside the prompt and the negative prompt."""
        ...

    def needs_unconditional(self, guidance_scale: float) -> bool:
        """Whether the gradient depends on the prediction for the negative prompt.

        Args:
            guidance_scale: s of the guidance; where it is 1, classifier-free guidance is the conditional
                prediction alone.
        """
        ...

    def gradient(
        self, found: Predictions, weights: Float[Tensor, " B"], *, guidance_scale: float, progress: float
    ) -> Latents:
        """The gradient on latents.

        Args:
            found: the predictions.
            weights: w(t).
            guidance_scale: s of the guidance.
            progress: of the run, in [0, 1].
        """
        ...


@dataclass(frozen=True)
class SdsFormula:
    """w(t) (eps_hat - eps), with the guidance's own scale; see `score.sds_gradient`."""

    kind: Literal["sds"] = "sds"

    texts: ClassVar[tuple[str, ...]] = ()

    def needs_unconditional(self, guidance_scale: float) -> bool:
        """At every scale but 1."""
        return guidance_scale != 1.0

    def gradient(
        self, found: Predictions, weights: Float[Tensor, " B"], *, guidance_scale: float, progress: float
    ) -> Latents:
        """See `score.sds_gradient`."""
        guided = score.classifier_free_guidance(found.unconditional, found.conditional, guidance_scale)
        return score.sds_gradient(guided, found.noise, weights)


@dataclass(frozen=True)
class CsdFormula:
    """w(t) (cond + negative uncond + empty eps(""))), without a guidance scale; see `score.csd_gradient`.

    Both coefficients are schedules (see `PiecewiseLinear`) and add up to -1: the classifier between the
    prompt and a mixture of the guidance's negative prompt and the empty one. The released configurations
    move `negative` from 0 to -1 and `empty` from -1 to 0, or to -0.5 each.
    """

    kind: Literal["csd"] = "csd"
    negative: tuple[float, ...] = schedule((-1.0,), -10.0, 10.0)  # coefficient of the negative prompt
    empty: tuple[float, ...] = schedule((0.0,), -10.0, 10.0)  # coefficient of the empty prompt

    def __post_init__(self) -> None:
        check(self)

    @property
    def texts(self) -> tuple[str, ...]:
        """The empty text, where it has a coefficient."""
        return ("",) if any(PiecewiseLinear(self.empty).values) else ()

    def needs_unconditional(self, guidance_scale: float) -> bool:
        """Where it has a coefficient."""
        return any(PiecewiseLinear(self.negative).values)

    def gradient(
        self, found: Predictions, weights: Float[Tensor, " B"], *, guidance_scale: float, progress: float
    ) -> Latents:
        """See `score.csd_gradient`."""
        terms = [(PiecewiseLinear(self.negative)(progress), found.unconditional)]
        terms += [(PiecewiseLinear(self.empty)(progress), other) for other in found.others]
        return score.csd_gradient(found.conditional, terms, weights)


@dataclass(frozen=True)
class NfsdFormula:
    """w(t) (delta_D + s (cond - uncond)); see `score.nfsd_gradient`.

    `bad` describes images of bad quality, in the words of the paper; the guidance's negative prompt is that
    of uncond and stays empty in the paper.
    """

    kind: Literal["nfsd"] = "nfsd"
    guidance_scale: float = number(7.5, 0.0, 1e4)  # s
    bad: str = BAD_QUALITY  # prompt of bad images
    low_noise: float = number(0.2, 0.0, 1.0)  # timesteps below, as a fraction, have delta_D = uncond

    def __post_init__(self) -> None:
        check(self)

    def needs_unconditional(self, guidance_scale: float) -> bool:
        """Always, for delta_D."""
        return True

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of bad quality, also at low noise: a batch has timesteps of both kinds."""
        return (self.bad,)

    def gradient(
        self, found: Predictions, weights: Float[Tensor, " B"], *, guidance_scale: float, progress: float
    ) -> Latents:
        """See `score.nfsd_gradient`."""
        low = found.time < self.low_noise
        bad = found.others[0]
        return score.nfsd_gradient(
            found.unconditional, found.conditional, bad, low, weights, self.guidance_scale
        )


@dataclass(frozen=True)
class SsdFormula:
    """w(t) (cond - uncond), at low noise with the direction of cond's part without noise.

    See `score.ssd_gradient`.
    """

    kind: Literal["ssd"] = "ssd"
    low_noise: float = number(0.1, 0.0, 1.0)  # timesteps up to it, as a fraction

    def __post_init__(self) -> None:
        check(self)

    texts: ClassVar[tuple[str, ...]] = ()

    def needs_unconditional(self, guidance_scale: float) -> bool:
        """Always, for cond - uncond."""
        return True

    def gradient(
        self, found: Predictions, weights: Float[Tensor, " B"], *, guidance_scale: float, progress: float
    ) -> Latents:
        """See `score.ssd_gradient`."""
        low = found.time <= self.low_noise
        return score.ssd_gradient(found.unconditional, found.conditional, found.noise, low, weights)


@dataclass(frozen=True)
class CleanFormula:
    """w(t) (z - x0'), with a rescaled standard deviation of x0'; see `score.reconstruction_gradient`.

    MVDream has the guidance's weighting `uniform`.
    """

    kind: Literal["x0"] = "x0"
    guidance_scale: float = number(50.0, 0.0, 1e4)  # s of x0'
    rescale: float = number(0.5, 0.0, 1.0)  # 1: x0' has the standard deviation of cond's clean image

    def __post_init__(self) -> None:
        check(self)

    texts: ClassVar[tuple[str, ...]] = ()

    def needs_unconditional(self, guidance_scale: float) -> bool:
        """At every scale of its own but 1."""
        return self.guidance_scale != 1.0

    def gradient(
        self, found: Predictions, weights: Float[Tensor, " B"], *, guidance_scale: float, progress: float
    ) -> Latents:
        """See `score.reconstruction_gradient`."""
        guided = score.classifier_free_guidance(found.unconditional, found.conditional, self.guidance_scale)
        return score.reconstruction_gradient(
            found.latents, found.clean(guided), found.clean(found.conditional), weights, self.rescale
        )


FormulaConfig: TypeAlias = SdsFormula | CsdFormula | NfsdFormula | SsdFormula | CleanFormula
