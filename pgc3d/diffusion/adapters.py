"""Trainable low-rank adapters in a copy of a frozen UNet, with a condition for the camera.

The copy has modules of its own and the weights of the original, which is not changed: adapters cost their own
memory, and any number of them can be made from one model.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.diffusion.latent import LatentDiffusion, Latents
from pgc3d.types import Cameras, TextEmbedding

LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]  # of every attention
CAMERA = 16  # numbers of a camera's matrix


class AdaptedModel:
    """A latent diffusion model whose UNet has LoRA and a camera condition; only these are trained.

    At first it predicts what the frozen model predicts. Adapters are in float32, whatever the weights are.
    """

    def __init__(self, model: LatentDiffusion, rank: int, generator: torch.Generator) -> None:
        """Make the adapters.

        Args:
            model: with diffusers' own modules.
            rank: of the adapters.
            generator: on the CPU, of their first values.
        """
        unet = share_weights(model.unet)
        self.parameters = _add_lora(unet, rank, generator) | _add_camera(unet, generator, model.device)
        self.model = replace(model, unet=unet, predictor=None)

    def predict(
        self,
        noisy: Latents,
        timesteps: Int[Tensor, " B"],
        text: TextEmbedding,
        labels: Float[Tensor, "B 16"],
        time_ids: Float[Tensor, "1 6"] | None = None,
    ) -> Latents:
        """The predicted noise, differentiable in the adapters.

        Args:
            noisy: z_t.
            timesteps: on the device, in [0, train_steps).
            text: one prompt per image.
            labels: of the cameras, see `camera_labels`; zeros for none.
            time_ids: for the SDXL layout.
        """
        return self.model.differentiable_prediction(
            noisy, timesteps, [text], time_ids=time_ids, labels=labels
        )[0]


def share_weights(network: Any) -> Any:
    """A copy of a network's modules with the same tensors; its structure can be changed on its own."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def camera_labels(cameras: Cameras) -> Float[Tensor, "B 16"]:
    """The numbers of each camera's world_from_camera matrix, row by row."""
    matrix = torch.zeros_like(cameras.camera_from_world)
    matrix[:, :3, :3] = cameras.camera_from_world[:, :3, :3].transpose(1, 2)
    matrix[:, :3, 3] = cameras.position
    matrix[:, 3, 3] = 1.0
    return matrix.flatten(1)


def _add_lora(unet: Any, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Inject LoRA (arXiv 2106.09685) into all attentions; the factor of the output is zero at first."""
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):  # peft's own first values are not used
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS), unet)
    found: dict[str, Tensor] = {}
    for name, parameter in unet.named_parameters():
        if "lora_" not in name:
            continue
        down = ".lora_A." in name
        values = torch.zeros(parameter.shape)
        if down:
            values.normal_(0.0, 1.0 / rank, generator=generator)
        parameter.data = values.to(parameter.device)
        found[name] = parameter
    return found


def _add_camera(unet: Any, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """Add a network for the camera's matrix to the time embedding; its last layer is zero at first."""
    from diffusers.models.embeddings import TimestepEmbedding

    with torch.random.fork_rng(devices=[]):
        embedding = TimestepEmbedding(CAMERA, unet.time_embedding.linear_2.out_features)
    with torch.no_grad():
        bound = CAMERA**-0.5
        embedding.linear_1.weight.uniform_(-bound, bound, generator=generator)
        embedding.linear_1.bias.zero_()
        embedding.linear_2.weight.zero_()
        embedding.linear_2.bias.zero_()
    unet.class_embedding = embedding.to(device)
    return {f"class_embedding.{name}": value for name, value in unet.class_embedding.named_parameters()}
