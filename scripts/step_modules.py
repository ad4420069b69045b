"""The modules of a guidance step with random weights, and inputs for them."""

from dataclasses import dataclass, replace

import torch
from make_random_sdxl import randomize, sd_unet_config, unet_config, vae_config
from torch import Tensor

from pgc3d.diffusion.controlnet import Control
from pgc3d.diffusion.fast.accelerate import release_decoder
from pgc3d.diffusion.latent import LatentDiffusion, Layout, select
from pgc3d.schedules import alphas_cumprod
from pgc3d.types import TextEmbedding


@dataclass(frozen=True)
class Inputs:
    """Inputs of all implementations; prompts are random embeddings of the right size."""

    image: Tensor
    noise: Tensor
    posterior_noise: Tensor
    pull: Tensor
    timesteps: Tensor
    conditional: TextEmbedding
    unconditional: TextEmbedding
    time_ids: Tensor | None

    def one_image(self, number: int) -> "Inputs":
        """The inputs of one image of the batch."""
        row = torch.tensor([number], device=self.image.device)
        tensors = ("image", "noise", "posterior_noise", "pull", "timesteps")
        return replace(
            self,
            **{name: getattr(self, name)[row] for name in tensors},
            conditional=select(self.conditional, row),
            unconditional=select(self.unconditional, row),
        )


def make_model(layout: Layout, *, tiny: bool, device: torch.device, dtype: torch.dtype) -> LatentDiffusion:
    """A frozen model with random weights, without the decoder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = unet_config if layout == "sdxl" else sd_unet_config
    generator = torch.Generator(device).manual_seed(0)
    modules = []
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config(full_size=not tiny))
        vae = AutoencoderKL(**vae_config(full_size=not tiny))
    for module in (unet, vae):
        torch.nn.Module.to(module, dtype=dtype)  # the library's own `to` warns
        module.to_empty(device=device)
        randomize(module, generator)
        modules.append(module.eval().requires_grad_(requires_grad=False))
    levels = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    model = LatentDiffusion(
        unet=modules[0],
        vae=modules[1],
        alphas_cumprod=alphas_cumprod(levels).to(device),
        prediction="epsilon",
        layout=layout,
    )
    release_decoder(model)
    return model


def make_inputs(model: LatentDiffusion, batch: int) -> Inputs:
    """Random images at the model's own resolution."""
    generator = torch.Generator().manual_seed(1)
    config, side = model.unet.config, model.resolution
    shape = model.latent_shape(batch, side)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(model.device)

    pooled = None
    if model.layout == "sdxl":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        pooled = normal(batch, width)
    tokens = [normal(batch, 77, config.cross_attention_dim) for _ in range(2)]
    return Inputs(
        image=torch.rand((batch, side, side, 3), generator=generator).to(model.device),
        noise=normal(*shape),
        posterior_noise=normal(*shape),
        pull=normal(*shape),
        timesteps=torch.randint(20, 980, (batch,), generator=generator).to(model.device),
        conditional=TextEmbedding(tokens=tokens[0], pooled=pooled),
        unconditional=TextEmbedding(tokens=tokens[1], pooled=pooled),
        time_ids=model.time_ids(side, side),
    )


def make_control(model: LatentDiffusion) -> Control:
    """A depth ControlNet with random weights beside the model's UNet."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    widths = (16, 32, 96, 256)  # of the condition's layers; each but the first halves the sides
    network = ControlNetModel.from_unet(model.unet, conditioning_embedding_out_channels=widths)
    torch.nn.Module.to(network, device=model.device, dtype=next(model.unet.parameters()).dtype)
    randomize(network, torch.Generator(model.device).manual_seed(2))
    return Control(network=network.eval().requires_grad_(requires_grad=False), condition="depth")
