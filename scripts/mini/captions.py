"""Captions and colour variants of the training models, and the small tokenizer of their words."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgc3d.view_prompts import ViewPromptConfig

# sRGB of the colour words of variants
PAINTS: dict[str, tuple[float, float, float]] = {
    "red": (0.78, 0.08, 0.08),
    "orange": (0.93, 0.48, 0.08),
    "yellow": (0.95, 0.82, 0.15),
    "green": (0.16, 0.58, 0.20),
    "dark green": (0.06, 0.30, 0.12),
    "blue": (0.10, 0.25, 0.80),
    "light blue": (0.50, 0.74, 0.94),
    "dark blue": (0.06, 0.10, 0.36),
    "purple": (0.48, 0.14, 0.64),
    "pink": (0.95, 0.55, 0.70),
    "brown": (0.40, 0.22, 0.10),
    "black": (0.07, 0.07, 0.07),
    "white": (0.93, 0.93, 0.92),
    "gray": (0.50, 0.50, 0.50),
}
WOOD = (0.55, 0.33, 0.16)
UNPAINTED_CLASSES = {"person", "tree", "plant", "food", "animal"}
CLASS_WORDS = {
    "chair", "table", "lamp", "cabinet", "sofa", "armchair", "bed", "car", "bench", "desk", "stool",
    "wardrobe", "shelves", "tree", "plant", "person", "coffee table", "washing machine",
}  # fmt: skip
ANGLES = ("fifteen", "thirty", "fortyfive", "sixty", "seventyfive", "ninety", "hundredfive", "hundredtwenty",
          "hundredthirtyfive", "hundredfifty", "hundredsixtyfive")  # fmt: skip
VIEWS = ViewPromptConfig(
    template="{prompt}, {azimuth} view, {elevation}, {background} background",
    azimuth_words=(
        "front", *(f"{a} right" for a in ANGLES), "back", *(f"{a} left" for a in reversed(ANGLES))
    ),
    azimuth_widths_degrees=(15.0,) * 24,
    overhead_above_degrees=90.0,
    elevation_bounds_degrees=(0.0, 15.0, 30.0, 50.0),
    elevation_words=("below", "level", "raised", "high", "overhead"),
    backgrounds={
        "white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5), "black": (0.05, 0.05, 0.05),
        "blue": (0.35, 0.55, 0.85),
    },
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """The colours of a model: its own, one colour, or wood."""

    color: str | None  # the word for it; None as it is
    rgb: tuple[float, float, float] | None  # sRGB in [0, 1]; None as it is
    grain: bool = False  # draw growth rings


def head(label: str) -> str:
    """The noun of a label: `grand piano` -> `piano`, `chair with cushion` -> `chair`."""
    for word in (" with ", " on ", " in ", " and "):
        label = label.partition(word)[0]
    return label.rpartition(" ")[2]


def article(words: str) -> str:
    """Put a or an in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def variants(record: dict[str, Any], count: int, generator: random.Random) -> list[Variant]:
    """The model with its own colours, then `count` recoloured copies and one of wood, where that makes sense.

    People, plants, food, animals and glass keep their colours; no copy has the model's own main colour, and
    none is of wood if the model is.
    """
    result = [Variant(None, None)]
    if record["cls"] in UNPAINTED_CLASSES or record["glass"] > 0.4:
        return result
    own = record["colors"][0][0] if record["colors"] else ""
    names = generator.sample([name for name in PAINTS if name != own], count)
    for name in names:
        jitter = [generator.uniform(-0.03, 0.03) for _ in range(3)]
        rgb = tuple(min(1.0, max(0.0, c + j)) for c, j in zip(PAINTS[name], jitter, strict=True))
        result.append(Variant(name, (rgb[0], rgb[1], rgb[2])))
    if "wooden" not in record["materials"]:
        shade = generator.uniform(0.7, 1.25)
        result.append(Variant("wooden", (WOOD[0] * shade, WOOD[1] * shade, WOOD[2] * shade), grain=True))
    return result


def captions(record: dict[str, Any], variant: Variant) -> list[tuple[str, float]]:
    """Texts for a model and how often each is shown; the weights do not have to sum to 1.

    The noun is the label, its head or the coarse class; before it stand colours and material, or less of
    them. A recoloured copy is described by its colour, seldom together with the colour of its other parts.
    """
    label = record["label"].lower()
    nouns = [(label, 1.0)]
    if head(label) != label:
        nouns.append((head(label), 0.35))
    if record["cls"] in CLASS_WORDS and record["cls"] not in (label, head(label)):
        nouns.append((record["cls"], 0.3))
    if variant.color is None:
        names = [name for name, _ in record["colors"][:2]]
        color = " and ".join(names)
        first = names[0] if names else ""
        material = record["materials"][0] if record["materials"] else ""
        if record["glass"] > 0.5:
            color = first = "transparent"
        patterns = [(f"{color} {material}", 0.35), (f"{color}", 0.15), (f"{first}", 0.15),
                    (f"{material}", 0.1), ("", 0.25)]  # fmt: skip
    else:
        second = [name for name, _ in record["colors"][1:2]]
        patterns = [(variant.color, 0.85)]
        if second and second[0] != variant.color and variant.color != "wooden":
            patterns.append((f"{variant.color} and {second[0]}", 0.15))
    texts: dict[str, float] = {}
    for noun, share in nouns:
        for pattern, weight in patterns:
            words = " ".join(f"{pattern} {noun}".split())
            for text, part in ((article(words), 0.85), (words, 0.15)):
                texts[text] = texts.get(text, 0.0) + share * weight * part
    return sorted(texts.items())


def train_tokenizer(texts: list[str], folder: Path, *, vocabulary: int = 1600, length: int = 32) -> None:
    """Train a byte-pair tokenizer in CLIP's format on `texts` and save it to a folder.

    Args:
        texts: what it must be able to spell briefly; other text costs more tokens.
        folder: where `CLIPTokenizer.from_pretrained` will find it; made if missing.
        vocabulary: most entries, the 256 bytes (alone and at a word's end) and two marks among them.
        length: tokens at which `CLIPTokenizer` cuts, marks included.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    model = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, behavior="removed", invert=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=1, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    model.train_from_iterator(texts, trainer)
    state = json.loads(model.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = state["vocab"], [tuple(m) for m in state["merges"]]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=length, unk_token="<|endoftext|>",
        bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
    ).save_pretrained(folder)  # fmt: skip
