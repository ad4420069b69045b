"""Train the text part of the bundled prior: UNet and two text encoders in SDXL's layout.

    torchrun --nproc-per-node 2 scripts/mini/train_text.py DATASET OUT --minutes 12

The autoencoder in OUT/vae (train_vae.py) may still be in training: this waits for it. A call that ends before
the minutes are used up leaves OUT/state.pt, and the same command goes on from there. The result is a folder
that `StableDiffusionXLPipeline` can load.
"""

import argparse
import dataclasses
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from captions import VIEWS, captions, train_tokenizer
from jaxtyping import Float, Int
from loop import Budget, MovingAverage, end, load_state, save_state, start, update
from store import Pair, ViewStore, build_store, composite, named_backgrounds, posterior
from torch import Tensor, nn

from pgc3d.prompts import view_index, view_prompts
from pgc3d.rendering import build_rasterizer
from pgc3d.schedules import add_noise, alphas_cumprod, velocity

TOKENS = 32
SIZES = (128, 256)
DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "num_train_timesteps": 1000, "prediction_type": "v_prediction", "clip_sample": False,
             "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "trailing"}  # fmt: skip


def make_models(vocabulary: int) -> nn.ModuleDict:
    """The trainable parts: a 20 M UNet, and text encoders of width 96 and 160."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text(width: int, heads: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=3,
            num_attention_heads=heads, max_position_embeddings=TOKENS, projection_dim=160,
            bos_token_id=0, eos_token_id=1, pad_token_id=1, hidden_act="gelu",
        )  # fmt: skip

    unet = UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(96, 160, 256), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1, attention_head_dim=(3, 5, 8), cross_attention_dim=256,
        addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=160 + 6 * 32, use_linear_projection=True,
    )  # fmt: skip
    return nn.ModuleDict({
        "unet": unet,
        "text_encoder": CLIPTextModel(text(96, 4)),
        "text_encoder_2": CLIPTextModelWithProjection(text(160, 5)),
    })  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Token ids of all captions and of all view suffixes; rows are padded."""

    caption: Int[Tensor, "C L"]
    caption_length: Int[Tensor, " C"]
    weight: Float[Tensor, "P K"]  # of caption `choice[p, k]` for pair p
    choice: Int[Tensor, "P K"]
    suffix: Int[Tensor, "S L"]
    suffix_length: Int[Tensor, " S"]


def make_texts(pairs: Sequence[Pair], tokenizer: Any, device: torch.device) -> Texts:
    """Tokenise every caption once; at training a row is put together on the device."""
    options = [captions(pair.record, pair.variant) for pair in pairs]
    unique = {text: k for k, text in enumerate(sorted({text for option in options for text, _ in option}))}
    width = max(len(option) for option in options)
    choice = torch.zeros(len(options), width, dtype=torch.int64)
    weight = torch.zeros(len(options), width)
    for p, option in enumerate(options):
        for k, (text, share) in enumerate(option):
            choice[p, k], weight[p, k] = unique[text], share

    def rows(texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = [tokenizer(text)["input_ids"][1:-1][:20] for text in texts]
        table = torch.zeros(len(ids), max(len(i) for i in ids), dtype=torch.int64)
        for k, i in enumerate(ids):
            table[k, : len(i)] = torch.tensor(i)
        return table.to(device), torch.tensor([len(i) for i in ids], device=device)

    suffixes = [text.removeprefix("x") for text in view_prompts("x", VIEWS)]
    return Texts(*rows(list(unique)), weight.to(device), choice.to(device), *rows(suffixes))


def token_rows(texts: Texts, caption: Tensor, suffix: Tensor, empty: Tensor) -> Int[Tensor, "B T"]:
    """[start, caption, suffix, end, end ...]; start is 0, end is 1, and nothing lies in between if empty."""
    position = torch.arange(TOKENS, device=caption.device)[None] - 1
    first = texts.caption_length[caption][:, None]
    second = texts.suffix_length[suffix][:, None]
    column = position.clamp(0, texts.caption.shape[1] - 1).expand(len(caption), -1)
    head = texts.caption[caption].gather(1, column)
    tail = texts.suffix[suffix].gather(1, (position - first).clamp(0, texts.suffix.shape[1] - 1))
    row = torch.where(position < first, head, torch.where(position < first + second, tail, 1))
    row = torch.where(empty[:, None], 1, row)
    row[:, 0] = 0
    row[:, -1] = 1
    return row


@dataclass(frozen=True)
class Latents:
    """Posterior moments of every view at one size."""

    mean: Float[Tensor, "N 4 h w"]
    std: Float[Tensor, "N 4 h w"]
    suffix: Int[Tensor, " N"]  # index of the text with the camera's direction and the background


@torch.no_grad()
def encode_store(vae: Any, store: ViewStore, size: int, seed: int) -> Latents:
    """Encode every view on one of the named backgrounds."""
    device = store.images.device
    generator = torch.Generator(device).manual_seed(seed)
    named = named_backgrounds(device)
    which = torch.randint(len(named), (len(store.images),), device=device, generator=generator)
    means, deviations = [], []
    for part, pick in zip(torch.split(store.images, 512), torch.split(which, 512), strict=True):
        image = composite(part, named[pick])
        image = F.interpolate(image, size=(size, size), mode="area") if size != image.shape[-1] else image
        mean, deviation = posterior(vae, image)
        means.append(mean)
        deviations.append(deviation)
    suffix = view_index(store.azimuth, store.elevation, named[which], VIEWS)
    return Latents(torch.cat(means), torch.cat(deviations), suffix)


def encode_text(models: nn.ModuleDict, rows: Int[Tensor, "B T"]) -> tuple[Tensor, Tensor]:
    """SDXL's text conditioning: both encoders' last but one layer, and the pooled output of the second."""
    first = models["text_encoder"](rows, output_hidden_states=True)
    second = models["text_encoder_2"](rows, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def batch_of(size: int, batch: int) -> int:
    """Images of a size in one update; 256 px cost about four times as much as 128 px."""
    return batch if size == SIZES[0] else batch * 5 // 16


class Trainer:
    """Data, models and optimiser of one process."""

    def __init__(self, store: ViewStore, tokenizer: Any, device: torch.device, rank: int) -> None:
        self.device, self.rank = device, rank
        self.texts = make_texts(store.pairs, tokenizer, device)
        self.draw, self.pair = store.weights(), store.pair
        self.latents: dict[int, Latents] = {}
        torch.manual_seed(0)
        self.models = make_models(len(tokenizer)).to(device)
        self.parameters = list(self.models.parameters())
        self.average = MovingAverage(self.parameters, 0.9995)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.alphas = alphas_cumprod(DIFFUSION).to(device)
        unet: Any = self.models["unet"]
        unet.to(memory_format=torch.channels_last)
        self.unet = torch.compile(unet, dynamic=False) if device.type == "cuda" else unet
        torch.manual_seed(1000 + rank)

    def encode(self, out: Path, store: ViewStore) -> None:
        """Turn all images into latents with the trained autoencoder."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(out / "vae").to(self.device).eval()
        self.latents = {
            size: encode_store(vae, store, size, 10 * self.rank + k) for k, size in enumerate(SIZES)
        }

    def compile(self, batch: int) -> None:
        """Compile both shapes on random latents, which can be done while the autoencoder still trains."""
        for size in SIZES:
            moments = torch.randn(len(self.pair), 4, size // 8, size // 8, device=self.device).half()
            self.latents[size] = Latents(moments, moments, torch.zeros_like(self.pair))
            torch.autograd.backward(self.loss(size, batch_of(size, batch)))
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, size: int, count: int) -> Tensor:
        """Mean squared error of v = sqrt(abar) eps - sqrt(1 - abar) z (Salimans and Ho 2022, section 4)."""
        latents, device = self.latents[size], self.device
        view = torch.multinomial(self.draw, count, replacement=True)
        pair = self.pair[view]
        option = torch.multinomial(self.texts.weight[pair], 1)[:, 0]
        empty = torch.rand(count, device=device) < 0.1
        rows = token_rows(self.texts, self.texts.choice[pair, option], latents.suffix[view], empty)
        mean = latents.mean[view].float()
        z = mean + latents.std[view].float() * torch.randn_like(mean)
        noise = torch.randn_like(z)
        t = torch.randint(1000, (count,), device=device)
        noisy = add_noise(z, noise, self.alphas[t])
        ids = torch.tensor([[size, size, 0, 0, size, size]], device=device, dtype=torch.float32)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            tokens, pooled = encode_text(self.models, rows)
            conditions = {"text_embeds": pooled, "time_ids": ids.expand(count, -1)}
            out = self.unet(noisy.contiguous(memory_format=torch.channels_last), t, tokens,
                            added_cond_kwargs=conditions, return_dict=False)[0]  # fmt: skip
        return F.mse_loss(out.float(), velocity(z, noise, self.alphas[t]))

    def step(self, size: int, count: int, lr: float) -> Tensor:
        """One update."""
        loss = self.loss(size, count)
        update(loss, self.optimizer, self.average, lr)
        return loss.detach()


def save_pipeline(models: nn.ModuleDict, tokenizer_folder: Path, out: Path, texts: list[str]) -> None:
    """Write a folder in the layout of StableDiffusionXLPipeline, half precision; the VAE must be there.

    Beside it lie `view_prompts.json`, how a camera is put into words, and `vocabulary.json`, all words shown.
    """
    import diffusers
    from diffusers import DDIMScheduler
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTokenizer

    vae = AutoencoderKL.from_pretrained(out / "vae").to(torch.float16)
    vae.register_to_config(_name_or_path="")  # no path of this computer in what is shipped
    vae.save_pretrained(out / "vae")
    module: Any
    for name, module in models.items():
        module.to(torch.float16).save_pretrained(out / name)
    for name in ("tokenizer", "tokenizer_2"):
        CLIPTokenizer.from_pretrained(tokenizer_folder).save_pretrained(out / name)
    DDIMScheduler(**DIFFUSION).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": diffusers.__version__,
        "force_zeros_for_empty_prompt": False, "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    words = sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})
    (out / "vocabulary.json").write_text(json.dumps({"words": words}, indent=0) + "\n")
    (out / "view_prompts.json").write_text(json.dumps(dataclasses.asdict(VIEWS), indent=1) + "\n")


def finish(trainer: Trainer, budget: Budget, out: Path, texts: list[str]) -> None:
    """Save what a later call needs, and the averaged weights as a pipeline."""
    save_state(out / "state.pt", trainer.models, trainer.optimizer, trainer.average, budget)
    trainer.average.swap()
    save_pipeline(trainer.models, out / "bpe", out, texts)
    print(f"text training: {budget.progress:.0%} of its time, {budget.step} steps", flush=True)


def run(trainer: Trainer, budget: Budget, arguments: argparse.Namespace, rank: int) -> None:
    """First small images alone, then both sizes in turn."""
    began = time.perf_counter()
    for step in budget.steps(arguments.call_seconds):
        size = SIZES[budget.progress > arguments.small_share and step % 2 == 0]
        loss = trainer.step(size, batch_of(size, arguments.batch), budget.learning_rate(arguments.lr))
        if rank == 0 and step % 250 < 2:
            print(f"text {step} {time.perf_counter() - began:.0f}s {budget.progress:.3f} {size} px "
                  f"loss {loss:.4f}", flush=True)  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--call-seconds", type=float, default=math.inf, help="stop earlier, to be resumed")
    parser.add_argument("--batch", type=int, default=512, help="128 px images for each process")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--small-share", type=float, default=0.45, help="fraction of the time with 128 px alone"
    )
    parser.add_argument("--views", type=int, default=40)
    parser.add_argument("--paints", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None)
    arguments = parser.parse_args()
    rank, _, device = start()
    from transformers import CLIPTokenizer

    store = build_store(
        arguments.dataset, "train", views=arguments.views, recolors=arguments.paints, resolution=256,
        seed=50 + rank, rasterizer=build_rasterizer("auto", device), device=device, limit=arguments.limit,
    )  # fmt: skip
    texts = [text for pair in store.pairs for text, _ in captions(pair.record, pair.variant)]
    if rank == 0:
        train_tokenizer(texts + view_prompts("a", VIEWS), arguments.out / "bpe", length=TOKENS)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    tokenizer = CLIPTokenizer.from_pretrained(arguments.out / "bpe")
    trainer = Trainer(store, tokenizer, device, rank)
    trainer.compile(arguments.batch)
    while not (arguments.out / "vae_report.json").exists():  # written when the autoencoder is finished
        time.sleep(1)
    trainer.encode(arguments.out, store)
    del store
    budget = Budget(arguments.minutes, device)
    load_state(arguments.out / "state.pt", trainer.models, trainer.optimizer, trainer.average, budget)
    run(trainer, budget, arguments, rank)
    if rank == 0:
        finish(trainer, budget, arguments.out, texts)
    end()


if __name__ == "__main__":
    main()
