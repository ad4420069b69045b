"""A frozen latent diffusion model in diffusers' layout: encode, predict the noise, decode."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.schedules import epsilon_from_velocity
from pgc3d.types import TextEmbedding

Layout = Literal["sdxl", "sd", "zero123"]
Prediction = Literal["epsilon", "v_prediction"]
Image = Float[Tensor, "B H W 3"]
Latents = Float[Tensor, "B C h w"]
# (noisy, timesteps, tokens, added conditions) -> keyword arguments, all as the UNet takes them
Residuals = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], Mapping[str, Any]]


@dataclass(frozen=True)
class LatentDiffusion:
    """A UNet and a VAE with their noise schedule; its weights are never trained.

    `unet` is diffusers' UNet2DConditionModel and `vae` its AutoencoderKL; each may have its own precision.
    All latents of its methods are float32.
    """

    unet: Any
    vae: Any
    alphas_cumprod: Float[Tensor, " T"]  # float32, on the device
    prediction: Prediction
    layout: Layout
    # Replaces the forward pass of the VAE's encoder, from pixels to the mean and log variance of latents.
    encoder: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B C h w"]] | None = None
    predictor: Callable[..., Any] | None = None  # replaces the forward pass of the UNet
    style_tokens: int = 0  # the last tokens of each text, which are an image's and not for ControlNets

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @property
    def train_steps(self) -> int:
        """Number of timesteps, usually 1000."""
        return self.alphas_cumprod.shape[0]

    @property
    def downscale(self) -> int:
        """Pixels per latent, usually 8."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def resolution(self) -> int:
        """Side of the images of the model's training, in pixels."""
        return int(self.unet.config.sample_size) * self.downscale

    def latent_shape(self, batch: int, resolution: int) -> tuple[int, int, int, int]:
        """Shape of the latents of square images."""
        side = resolution // self.downscale
        return batch, int(self.vae.config.latent_channels), side, side

    def encode(self, image: Image, noise: Latents) -> Latents:
        """A sample of the VAE's posterior; differentiable in the image.

        Args:
            image: sRGB in [0, 1]; the sides must be multiples of `downscale`.
            noise: standard normal, in the shape of the latents; zeros for the posterior's mean.
        """
        pixels = (2.0 * image - 1.0).permute(0, 3, 1, 2)
        hidden = (self.encoder or self.vae.encoder)(pixels.to(_dtype(self.vae)))
        if self.vae.quant_conv is not None:
            hidden = self.vae.quant_conv(hidden)
        mean, log_variance = hidden.float().chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))  # the clamp is part of AutoencoderKL
        return (mean + deviation * noise - self._shift) * float(self.vae.config.scaling_factor)

    def encoder_gradient(self, image: Image, latents: Latents, gradient: Latents) -> Image:
        """The gradient on an image of a gradient on its latents, which must come from `encode`.

        In half precision every image's gradient is scaled by a power of two in between, against underflow.
        The product is linear, so that the scale is removed exactly at the end.
        """
        if _dtype(self.vae) != torch.float16:
            return torch.autograd.grad(latents, image, gradient)[0].float()
        peak = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        exponent = torch.nan_to_num(peak.clamp(min=1e-20).log2().floor(), nan=0.0, posinf=0.0).clamp(max=60.0)
        scale = torch.exp2(-exponent)
        return torch.autograd.grad(latents, image, gradient * scale)[0].float() / scale

    @torch.no_grad()
    def decode(self, latents: Latents) -> Image:
        """Images of latents, sRGB in [0, 1], without gradient; not available after `release_decoder`."""
        dtype = _dtype(self.vae)
        hidden = (latents / float(self.vae.config.scaling_factor) + self._shift).to(dtype)
        if self.vae.post_quant_conv is not None:
            hidden = self.vae.post_quant_conv(hidden)
        pixels = self.vae.decoder(hidden).float()
        return (0.5 * pixels + 0.5).clamp(0.0, 1.0).permute(0, 2, 3, 1)

    def predict(
        self,
        noisy: Latents,
        timesteps: Int[Tensor, " B"],
        *,
        conditional: TextEmbedding,
        unconditional: TextEmbedding,
        time_ids: Float[Tensor, "1 6"] | None = None,
        residuals: Residuals | None = None,
        beside: Latents | None = None,
    ) -> tuple[Latents, Latents]:
        """The predicted noise without and with the condition, from one batch of 2 B; no gradient.

        Args:
            noisy: z_t.
            timesteps: on the device, in [0, train_steps).
            conditional: one prompt per image.
            unconditional: one negative prompt per image.
            time_ids: see `predict_each`.
            residuals: see `predict_each`.
            beside: latents of the condition, concatenated with z_t, zeros without the condition; for the
                Zero123 layout, where they are required.

        Returns:
            (eps_uncond, eps_cond), also where the model predicts v.
        """
        eps_uncond, eps_cond = self.predict_each(
            noisy,
            timesteps,
            [unconditional, conditional],
            time_ids=time_ids,
            residuals=residuals,
            beside=None if beside is None else torch.cat([torch.zeros_like(beside), beside]),
        )
        return eps_uncond, eps_cond

    @torch.no_grad()
    def predict_each(
        self,
        noisy: Latents,
        timesteps: Int[Tensor, " B"],
        texts: Sequence[TextEmbedding],
        *,
        time_ids: Float[Tensor, "1 6"] | None = None,
        residuals: Residuals | None = None,
        beside: Float[Tensor, "N C h w"] | None = None,
    ) -> tuple[Latents, ...]:
        """The predicted noise for each of some texts, from one batch of N = B len(texts); no gradient.

        Args:
            noisy: z_t.
            timesteps: on the device, in [0, train_steps).
            texts: each with one prompt per image.
            time_ids: from `time_ids`; for the SDXL layout, where they are required.
            residuals: computes ControlNet residuals from the UNet's batch, without tokens of a style.
            beside: further channels of the UNet's batch.
        """
        return self.differentiable_prediction(
            noisy, timesteps, texts, time_ids=time_ids, residuals=residuals, beside=beside
        )

    def differentiable_prediction(
        self,
        noisy: Latents,
        timesteps: Int[Tensor, " B"],
        texts: Sequence[TextEmbedding],
        *,
        time_ids: Float[Tensor, "1 6"] | None = None,
        residuals: Residuals | None = None,
        beside: Float[Tensor, "N C h w"] | None = None,
        labels: Float[Tensor, "N D"] | None = None,
    ) -> tuple[Latents, ...]:
        """As `predict_each`, with gradients, as far as the UNet's parameters have any.

        Args:
            noisy: z_t.
            timesteps: see `predict_each`.
            texts: see `predict_each`.
            time_ids: see `predict_each`.
            residuals: see `predict_each`.
            beside: see `predict_each`.
            labels: inputs of the UNet's class embedding, for UNets with one.
        """
        dtype, count = _dtype(self.unet), len(texts)
        tokens = torch.cat([text.tokens for text in texts]).to(dtype)
        repeated, levels = torch.cat([noisy] * count), torch.cat([timesteps] * count)
        inputs = (repeated if beside is None else torch.cat([repeated, beside], dim=1)).to(dtype)
        added = self._added_conditions(texts, time_ids)
        words = tokens[:, : tokens.shape[1] - self.style_tokens]
        output = (self.predictor or self.unet)(
            inputs,
            levels,
            encoder_hidden_states=tokens,
            added_cond_kwargs=added,
            return_dict=False,
            **({} if labels is None else {"class_labels": labels}),
            **(residuals(inputs, levels, words, added) if residuals else {}),
        )[0].float()
        if self.prediction == "v_prediction":
            output = epsilon_from_velocity(output, repeated, self.alphas_cumprod[levels])
        return output.chunk(count)

    def time_ids(
        self, original: int, target: int, crop: tuple[int, int] = (0, 0)
    ) -> Float[Tensor, "1 6"] | None:
        """SDXL's size conditions for square images, None in the other layouts; sides in pixels."""
        if self.layout != "sdxl":
            return None
        return torch.tensor(
            [[original, original, *crop, target, target]], dtype=torch.float32, device=self.device
        )

    def _added_conditions(self, texts: Sequence[TextEmbedding], time_ids: Tensor | None) -> dict[str, Tensor]:
        if self.layout != "sdxl":
            return {}
        pooled = [text.pooled for text in texts if text.pooled is not None]
        if len(pooled) < len(texts) or time_ids is None:
            raise ValueError("the SDXL layout must have pooled embeddings and time_ids, got none")
        embeds = torch.cat(pooled).to(_dtype(self.unet))
        return {"text_embeds": embeds, "time_ids": time_ids.expand(len(embeds), -1)}

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)


def _dtype(module: torch.nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def interpolate(first: TextEmbedding, second: TextEmbedding, fraction: Float[Tensor, " B"]) -> TextEmbedding:
    """The mixture of two embeddings for each image; `fraction` is that of the first."""
    fraction = fraction.to(first.tokens.dtype)
    pooled = None
    if first.pooled is not None and second.pooled is not None:
        pooled = torch.lerp(second.pooled, first.pooled, fraction[:, None].to(first.pooled.dtype))
    tokens = torch.lerp(second.tokens, first.tokens, fraction[:, None, None])
    return TextEmbedding(tokens=tokens, pooled=pooled)


def select(embedding: TextEmbedding, index: Int[Tensor, " B"]) -> TextEmbedding:
    """The embedding of one prompt for each of `batch` images."""
    pooled = None if embedding.pooled is None else embedding.pooled[index]
    return TextEmbedding(tokens=embedding.tokens[index], pooled=pooled)
