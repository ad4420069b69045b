"""Variational score distillation: a network that learns the renders predicts the noise to subtract."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.context import GuidanceContext
from pgc3d.diffusion.adapters import AdaptedModel, camera_labels
from pgc3d.diffusion.latent import Latents, select
from pgc3d.diffusion.style import with_style
from pgc3d.guidance import score
from pgc3d.guidance.distillation import NoiseSample, distill, send
from pgc3d.guidance.micro_batch import in_micro_batches
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.parallel import sum_gradients
from pgc3d.parameters import ParameterGroup, ParameterStore
from pgc3d.ranges import MAX_RATE, check, number, schedule
from pgc3d.requirements import ModelUse, Requirements
from pgc3d.schedules import add_noise, sample_timesteps
from pgc3d.types import GuidanceOutput, Rendering, Step, TextEmbedding, Views

_ADAM, _NETWORK = "adam.", "network."  # prefixes of the state


@dataclass(frozen=True)
class VsdConfig:
    """Settings of variational score distillation; those of the same name as in `SdsConfig` mean the same.

    A copy of the UNet with low-rank adapters learns to predict the noise of the asset's renders; it has the
    camera as a condition, and the prompt without words for views. It makes one step of Adam in each step.
    """

    kind: Literal["vsd"] = "vsd"
    model: str = "text"  # an entry of `models`
    guidance_scale: float = number(7.5, 0.0, 1e4)  # s in uncond + s (cond - uncond)
    negative_prompt: str = ""  # what the images should not show
    perp_neg: float = number(0.0, 0.0, 100.0)  # factor of Perp-Neg's weights
    t_min: tuple[float, ...] = schedule((0.02,), 0.0, 1.0)  # lowest timestep
    t_max: tuple[float, ...] = schedule((0.0, 0.98, 0.5, 0.5), 0.0, 1.0)  # highest timestep
    weighting: score.Weighting = "sigma2"  # w(t)
    # Side of the model's input.
    resolution: int = number(
        0, 8, 4096, unit="pixels", multiple=8, also={0: "the model's own", -1: "the rendering's"}
    )
    original_size: int = number(0, 0, 16384, unit="pixels")  # SDXL's size condition; 0 is the resolution
    target_size: int = number(0, 0, 16384, unit="pixels")  # SDXL's size condition; 0 is the resolution
    rank: int = number(4, 1, 256)  # of the adapters
    lora_lr: float = number(1e-4, 0.0, MAX_RATE)  # learning rate of the adapters
    camera_dropout: float = number(0.1, 0.0, 1.0)  # probability of training without the camera

    def __post_init__(self) -> None:
        check(self)
        self._frozen()  # its settings check themselves

    def requires(self) -> Requirements:
        """A prompt, and a text-to-image model that is evaluated and trained."""
        frozen = self._frozen().requires()
        return replace(frozen, models={self.model: replace(frozen.models[self.model], trains=True)})

    def _frozen(self) -> SdsConfig:
        """The settings that the evaluation of the frozen model has in common with `sds`."""
        own = vars(self)
        shared = ("model", "guidance_scale", "negative_prompt", "perp_neg", "t_min", "t_max", "weighting",
                  "resolution", "original_size", "target_size")  # fmt: skip
        return SdsConfig(**{name: own[name] for name in shared})

    def input_resolution(self, rendered: int, model: int) -> int:
        """Side of the model's input in pixels, for renders and for a model of such sides."""
        return self._frozen().input_resolution(rendered, model)

    def build(self, context: GuidanceContext) -> "VariationalDistillation":
        """The guidance, over the frozen network and one with diffusers' own modules."""
        frozen = self._frozen().build(context)
        text = context.models.embed(self.model, (context.prompt,))
        style = context.models.style(self.model)
        plain = context.models.get(self.model, ModelUse(trains=True)).diffusion
        return VariationalDistillation(
            frozen=frozen,
            adapted=AdaptedModel(plain, self.rank, context.generator),
            text=text if style is None else with_style(text, style.image),
            lora_lr=self.lora_lr,
            camera_dropout=self.camera_dropout,
        )


class VariationalDistillation:
    """Variational score distillation (arXiv 2305.16213); an `interfaces.Guidance` with a state.

    The gradient on latents is w(t) (eps_hat - eps_lora): the frozen model's prediction with classifier-free
    guidance, less the adapted model's for the camera and the prompt without views.
    """

    def __init__(
        self,
        *,
        frozen: ScoreDistillation,
        adapted: AdaptedModel,
        text: TextEmbedding,
        lora_lr: float = 1e-4,
        camera_dropout: float = 0.1,
    ) -> None:
        """Store the inputs of every step on the device.

        Args:
            frozen: the frozen model with its prompts and settings.
            adapted: the same model with adapters.
            text: the prompt without words for views, one entry.
            lora_lr: learning rate of the adapters.
            camera_dropout: probability with which an image is trained without its camera.
        """
        self.frozen, self.adapted, self.text = frozen, adapted, text
        self.camera_dropout = camera_dropout
        self.micro_batch = 0  # see `interfaces.SupportsMicroBatch`
        group = ParameterGroup(name="lora", params=[*adapted.parameters.values()], lr=lora_lr)
        self.store = ParameterStore([group])
        self.store.use_adam()

    def input_resolution(self, rendered: int) -> int:
        """Side in pixels of the model's input, for renders of `rendered` pixels."""
        return self.frozen.input_resolution(rendered)

    def __call__(
        self, image: Float[Tensor, "B H W 3"], rendering: Rendering, views: Views, step: Step
    ) -> GuidanceOutput:
        """The gradient on the images; then the adapters make a step, for the same latents."""
        side = image.shape[1]
        inputs = self.frozen.draw(len(image), side, rendering, views, step)
        labels = camera_labels(views.cameras).to(self.frozen.model.device)
        seen: list[Tensor] = []
        gradient = partial(self.gradient, seen=seen)
        output = in_micro_batches(gradient, self.micro_batch, image=image, labels=labels, **inputs)
        loss = self._train(torch.cat(seen), labels, side, step)
        return replace(output, metrics={**output.metrics, "lora_loss": loss})

    def gradient(
        self,
        image: Float[Tensor, "B H W 3"],
        *,
        labels: Float[Tensor, "B 16"],
        seen: list[Tensor] | None = None,
        **inputs: Any,
    ) -> GuidanceOutput:
        """The gradient for given noise, texts and cameras; see `distill`.

        Args:
            image: sRGB in [0, 1].
            labels: see `adapters.camera_labels`.
            seen: a list that the latents are added to.
            inputs: see `ScoreDistillation.gradient`.
        """
        sample, shown = NoiseSample.split(inputs)
        frozen, side = self.frozen, image.shape[1]

        def score_of(latents: Latents) -> Latents:
            if seen is not None:
                seen.append(latents)
            found = frozen.predict(latents, sample, side, **shown)
            guided = score.classifier_free_guidance(
                found.unconditional, found.conditional, frozen.guidance_scale
            )
            with torch.no_grad():
                own = self._predict(found.noisy, sample.timesteps, labels, side)
            return score.sds_gradient(guided, own, score.weight(found.alphas_cumprod, frozen.weighting))

        return distill(frozen.model, image, sample, score_of)

    def _predict(self, noisy: Latents, timesteps: Tensor, labels: Tensor, side: int) -> Latents:
        text = select(self.text, torch.zeros_like(timesteps))
        return self.adapted.predict(noisy, timesteps, text, labels, self.frozen.size_conditions(side))

    def train_without_views(self, step: Step) -> None:
        """Make the step of the adapters that other processes have the views of; see `TrainsOnViews`."""
        self.store.zero_grad()
        self._step(torch.zeros((), device=self.frozen.model.device), 0, step)

    def _train(self, latents: Latents, labels: Tensor, side: int, step: Step) -> Float[Tensor, ""]:
        """One step of Adam on the mean squared error of the adapted model; its value before the step."""
        model, generator = self.frozen.model, step.generator("lora")
        batch, (total, own) = len(latents), step.rows(len(latents))
        timesteps = sample_timesteps(total, 0.0, 1.0, train_steps=model.train_steps, generator=generator)
        noise = torch.randn((total, *latents.shape[1:]), generator=generator)
        shown = (torch.rand(total, 1, generator=generator) >= self.camera_dropout).float()
        timesteps, noise, shown = (send(value[own], model.device) for value in (timesteps, noise, shown))
        self.store.zero_grad()
        losses = [
            self._add_gradients(latents[rows], noise[rows], timesteps[rows], (labels * shown)[rows], side)
            for rows in _slices(batch, self.micro_batch or batch)
        ]
        return self._step(torch.stack(losses).sum(), latents.numel(), step)

    def _step(self, error: Float[Tensor, ""], count: int, step: Step) -> Float[Tensor, ""]:
        """One step of Adam with the gradients of all processes; the mean squared error.

        Args:
            error: sum of the squared errors of this process's views.
            count: numbers of their latents.
            step: of the optimisation.
        """
        tensors, numbers = self.store.tensors(), torch.full_like(error, count)
        found = torch.stack([error, numbers])
        if step.shard.size > 1:
            found = sum_gradients(tensors, step.shard.sum, found)
        total, numbers = found.unbind()
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        torch._foreach_mul_(gradients, 2.0 / numbers)
        self.store.step(torch.isfinite(torch.nn.utils.get_total_norm(gradients, float("inf"))))
        self.store.zero_grad()
        return total / numbers

    def _add_gradients(
        self, latents: Latents, noise: Latents, timesteps: Tensor, labels: Tensor, side: int
    ) -> Float[Tensor, ""]:
        """Add the gradients of half the squared error to the adapters; the squared error.

        Without the mean's small factor, gradients in half precision do not underflow. The error of a model
        that predicts v is that of v, which is the noise's divided by sqrt(abar).
        """
        alphas_cumprod = self.frozen.model.alphas_cumprod[timesteps]
        with torch.enable_grad():
            predicted = self._predict(add_noise(latents, noise, alphas_cumprod), timesteps, labels, side)
        error, scale = predicted.detach() - noise, torch.ones_like(alphas_cumprod)
        if self.frozen.model.prediction == "v_prediction":
            scale = alphas_cumprod.rsqrt()
        error = scale[:, None, None, None] * error
        torch.autograd.backward(predicted, scale[:, None, None, None] * error)
        return error.square().sum()

    def state_dict(self) -> dict[str, Tensor]:
        """The adapters, and from their first step on the state of their optimiser."""
        network = {_NETWORK + name: value.detach() for name, value in self.adapted.parameters.items()}
        return network | {_ADAM + name: value for name, value in self.store.state_dict().items()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore a `state_dict`; without an optimiser's state, that of the time before its first step."""
        with torch.no_grad():
            for name, parameter in self.adapted.parameters.items():
                parameter.copy_(state_dict[_NETWORK + name])
        self.store.load_state_dict(
            {name.removeprefix(_ADAM): value for name, value in state_dict.items() if name.startswith(_ADAM)}
        )


def _slices(batch: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, batch, size)]
