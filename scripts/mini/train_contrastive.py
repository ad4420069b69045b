"""Train the small contrastive model for the evaluation of text results: CLIP's layout in miniature.

    python scripts/mini/train_contrastive.py DATASET OUT --minutes 6
    pgc3d eval LIST RUNS --retriever OUT

It shares the renders with the prior but no weight, sees no view words, and whole models are held out. OUT is
an ordinary CLIP checkpoint with captions.json beside it, and report.json: how often, among 100 texts, the
true one of a held-out model's view comes first (chance: 0.01). A call that ends before the minutes are used
up leaves OUT/state.pt, and the same command goes on from there.
"""

import argparse
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from captions import captions, train_tokenizer
from jaxtyping import Float, Int
from loop import Budget, MovingAverage, load_state, save_state, update
from store import ViewStore, build_store, composite, named_backgrounds
from torch import Tensor

from pgc3d.evaluation.retrieval import DEVIATION, MEAN, Retriever, load_retriever
from pgc3d.rendering import build_rasterizer

SIZE, TOKENS, DISTRACTORS = 128, 16, 500


def make_model(vocabulary: int) -> Any:
    """A CLIP of 3.7 M parameters: ViT with 64 patches of 16 px, text transformer, 128 shared dimensions."""
    from transformers import CLIPConfig, CLIPModel

    vision = {"image_size": SIZE, "patch_size": 16, "hidden_size": 192, "intermediate_size": 768,
              "num_hidden_layers": 6, "num_attention_heads": 6}  # fmt: skip
    text = {"vocab_size": vocabulary, "max_position_embeddings": TOKENS, "hidden_size": 128,
            "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


@dataclass(frozen=True)
class Texts:
    """Token rows of all captions, and how often each is drawn for a pair."""

    texts: list[str]
    rows: Int[Tensor, "C T"]
    choice: Int[Tensor, "P K"]
    weight: Float[Tensor, "P K"]


def make_texts(store: ViewStore, tokenizer: Any, device: torch.device) -> Texts:
    """Tokenise every caption once."""
    options = [captions(pair.record, pair.variant) for pair in store.pairs]
    texts = sorted({text for option in options for text, _ in option})
    number = {text: k for k, text in enumerate(texts)}
    width = max(len(option) for option in options)
    choice, weight = torch.zeros(len(options), width, dtype=torch.int64), torch.zeros(len(options), width)
    for p, option in enumerate(options):
        for k, (text, share) in enumerate(option):
            choice[p, k], weight[p, k] = number[text], share
    rows = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")[
        "input_ids"
    ]
    return Texts(texts, rows.to(device), choice.to(device), weight.to(device))


def contrastive_loss(
    images: Float[Tensor, "B C"], texts: Float[Tensor, "B C"], scale: Tensor, same: Tensor
) -> Tensor:
    """Cross entropy both ways (Radford et al. 2021); pairs whose texts are equal share the target."""
    logits = scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Trainer:
    """Images, texts, model and optimiser."""

    def __init__(self, store: ViewStore, tokenizer: Any, device: torch.device) -> None:
        self.store, self.device = store, device
        self.texts, self.draw = make_texts(store, tokenizer, device), store.weights()
        torch.manual_seed(0)
        self.model = make_model(len(tokenizer)).to(device)
        self.average = MovingAverage(self.model.parameters(), 0.999)
        self.optimizer = torch.optim.AdamW(
            self.average.source, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1, fused=True
        )
        self.named = named_backgrounds(device)
        self.mean, self.deviation = (
            torch.tensor(values, device=device)[:, None, None] for values in (MEAN, DEVIATION)
        )

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Images on named or any backgrounds, mirrored by chance, and numbers of their texts."""
        view = torch.multinomial(self.draw, count, replacement=True)
        pair = self.store.pair[view]
        background = self.named[torch.randint(len(self.named), (count,), device=self.device)]
        other = torch.rand(count, 1, device=self.device) < 0.3
        background = torch.where(other, torch.rand(count, 3, device=self.device), background)
        image = composite(self.store.images[view], background)
        mirrored = torch.rand(count, 1, 1, 1, device=self.device) < 0.5
        image = torch.where(mirrored, image.flip(-1), image)
        option = torch.multinomial(self.texts.weight[pair], 1)[:, 0]
        return (image - self.mean) / self.deviation, self.texts.choice[pair, option]

    def step(self, count: int, lr: float) -> Tensor:
        """One update."""
        pixels, chosen = self.batch(count)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            out = self.model(input_ids=self.texts.rows[chosen], pixel_values=pixels)
        same = chosen[:, None] == chosen[None]
        scale = self.model.logit_scale.clamp(max=math.log(100.0))
        loss = contrastive_loss(out.image_embeds.float(), out.text_embeds.float(), scale, same)
        update(loss, self.optimizer, self.average, lr)
        return loss.detach()


def save_checkpoint(trainer: Trainer, tokenizer: Any, out: Path) -> None:
    """Write the averaged weights in half precision, the tokenizer, and distractor texts."""
    trainer.average.swap()
    texts = sorted({text for text in trainer.texts.texts if text.startswith(("a ", "an "))})
    random.Random(0).shuffle(texts)
    trainer.model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "captions.json").write_text(json.dumps(texts[:DISTRACTORS], indent=0) + "\n")


@torch.no_grad()
def precision(retriever: Retriever, store: ViewStore, most: int = 100) -> float:
    """R-precision of views on white, the mean over the first models with their own colours."""
    plain = [number for number, pair in enumerate(store.pairs) if pair.variant.color is None][:most]
    others = [store.pairs[number].record["caption"] for number in plain]
    values = []
    for number in plain:
        images = store.images[store.pair == number]
        white = composite(images, torch.ones(len(images), 3, device=images.device)).permute(0, 2, 3, 1)
        caption = store.pairs[number].record["caption"]
        values.append(retriever.r_precision(white, caption, others))
    return sum(values) / len(values)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--call-seconds", type=float, default=math.inf, help="stop earlier, to be resumed")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--paints", type=int, default=3)
    parser.add_argument("--limit", type=int, default=None, help="use only so many models of each split")
    arguments = parser.parse_args()
    from transformers import CLIPTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shared: dict[str, Any] = {
        "resolution": SIZE, "rasterizer": build_rasterizer("auto", device), "device": device,
        "limit": arguments.limit,
    }  # fmt: skip
    store = build_store(
        arguments.dataset, "train", views=arguments.views, recolors=arguments.paints, seed=70, **shared
    )
    texts = [text for pair in store.pairs for text, _ in captions(pair.record, pair.variant)]
    train_tokenizer(texts, arguments.out / "bpe", length=TOKENS)
    tokenizer = CLIPTokenizer.from_pretrained(arguments.out / "bpe")
    trainer, budget = Trainer(store, tokenizer, device), Budget(arguments.minutes, device)
    saved = arguments.out / "state.pt"
    load_state(saved, trainer.model, trainer.optimizer, trainer.average, budget)
    for step in budget.steps(arguments.call_seconds):
        loss = trainer.step(arguments.batch, budget.learning_rate(arguments.lr))
        if step % 25 == 0:
            print(f"contrastive {step} {budget.progress:.3f} loss {loss:.4f}", flush=True)
    save_state(saved, trainer.model, trainer.optimizer, trainer.average, budget)
    save_checkpoint(trainer, tokenizer, arguments.out)
    held = build_store(arguments.dataset, "test", views=8, recolors=0, seed=71, **shared)
    retriever = load_retriever(arguments.out, device)
    report = {
        "held_out": precision(retriever, held),
        "seen": precision(retriever, store),
        "steps": budget.step,
    }
    (arguments.out / "report.json").write_text(json.dumps(report) + "\n")
    print(f"{budget.progress:.0%} of the time, {budget.step} steps, R-precision {report}", flush=True)


if __name__ == "__main__":
    main()
