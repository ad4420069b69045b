"""View-dependent prompts: texts with words for the camera, and the text of each camera."""

import difflib
import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.prompt_weights import plain_text, weight_note
from pgc3d.view_prompts import ViewPromptConfig

FUNCTION_WORDS = frozenset(
    {"a", "an", "the", "of", "and", "or", "with", "in", "on", "at", "to", "by", "for", "from"}
)


def _azimuth_sectors(config: ViewPromptConfig) -> tuple[list[str], list[float]]:
    """Words and upper bounds (degrees, from the first sector's lower bound) of the sectors."""
    if config.azimuth_step_degrees > 0:
        step, count = config.azimuth_step_degrees, round(360.0 / config.azimuth_step_degrees)
        words = [config.azimuth_number.format(degrees=round(step * index) % 360) for index in range(count)]
        widths = [step] * count
    else:
        words, widths = list(config.azimuth_words), list(config.azimuth_widths_degrees)
    return words, [sum(widths[: index + 1]) for index in range(len(widths))]


def _combinations(config: ViewPromptConfig) -> list[tuple[str, str, str] | None]:
    """(azimuth, elevation, background) words of every cell, None for cells that contain no camera.

    Cells are ordered by background, then elevation band, then sector with overhead last.
    """
    sectors, _ = _azimuth_sectors(config)
    edges = (-90.0, *config.elevation_bounds_degrees, 90.0)
    cells: list[tuple[str, str, str] | None] = []
    for background in config.backgrounds:
        for band, elevation in enumerate(config.elevation_words):
            beside = edges[band] < config.overhead_above_degrees
            above = edges[band + 1] > config.overhead_above_degrees
            cells += [(sector, elevation, background) if beside else None for sector in sectors]
            cells.append((config.overhead_word, elevation, background) if above else None)
    return cells


def _compose(prompt: str, words: tuple[str, str, str], config: ViewPromptConfig) -> str:
    azimuth, elevation, background = words
    text = config.template.format(prompt=prompt, azimuth=azimuth, elevation=elevation, background=background)
    text = re.sub(r"\s+", " ", text)  # an empty word leaves a gap behind
    return re.sub(r"( ?,)+", ",", text).strip(" ,")


def view_prompts(prompt: str, config: ViewPromptConfig) -> list[str]:
    """The prompts of all cells, each once; `view_index` returns indices into this list.

    Args:
        prompt: the user's text.
        config: the words, and the template that combines them with the prompt.
    """
    return list(dict.fromkeys(_compose(prompt, words, config) for words in _combinations(config) if words))


@lru_cache(maxsize=8)
def _lookup(config: ViewPromptConfig, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sector bounds, elevation bounds, background colours, and the index of each cell, on the device.

    Cached, because a copy to the device at every step would be a synchronisation.
    """
    texts = view_prompts("x", config)
    cells = [texts.index(_compose("x", words, config)) if words else 0 for words in _combinations(config)]
    _, bounds = _azimuth_sectors(config)
    return (
        torch.tensor(bounds[:-1], device=device),
        torch.tensor(config.elevation_bounds_degrees, device=device),
        torch.tensor(list(config.backgrounds.values()), device=device),
        torch.tensor(cells, device=device),
    )


def view_index(
    azimuth: Float[Tensor, " B"],
    elevation: Float[Tensor, " B"],
    background: Float[Tensor, "B 3"],
    config: ViewPromptConfig,
) -> Int[Tensor, " B"]:
    """The index into `view_prompts` of each camera's prompt, computed on the device.

    Args:
        azimuth: radians, of any range.
        elevation: radians.
        background: sRGB in [0, 1].
        config: the same as for `view_prompts`.
    """
    sector_bounds, band_bounds, colors, cells = _lookup(config, azimuth.device)
    words, bounds = _azimuth_sectors(config)
    degrees = elevation.rad2deg()
    first_half = bounds[0] / 2
    sector = torch.bucketize(
        torch.remainder(azimuth.rad2deg() + first_half, 360.0), sector_bounds, right=True
    )
    if config.overhead_above_degrees < 90.0:
        sector = torch.where(degrees >= config.overhead_above_degrees, len(words), sector)
    band = torch.bucketize(degrees, band_bounds, right=True)
    color = torch.cdist(background[None].float(), colors[None])[0].argmin(dim=1)
    return cells[(color * len(config.elevation_words) + band) * (len(words) + 1) + sector]


def unknown_words(prompt: str, vocabulary: Collection[str]) -> list[tuple[str, list[str]]]:
    """Words of the prompt that are not in the vocabulary, each with up to three similar ones that are."""
    known = sorted({word.lower() for word in vocabulary})
    return [
        (word, difflib.get_close_matches(word, known, n=3, cutoff=0.6))
        for word in _words(prompt)
        if word not in FUNCTION_WORDS and word not in known
    ]


def prompt_notes(prompt: str, vocabulary: Collection[str], name: str) -> list[str]:
    """Lines about the weights in a prompt, and the parts of it that have no effect on a model.

    Args:
        prompt: any text.
        vocabulary: the words that the model was trained with; empty where it has no fixed vocabulary.
        name: of the model, for the lines.
    """
    note = weight_note(prompt)
    notes = [note] if note else []
    if not vocabulary:
        return notes
    unknown = unknown_words(prompt, vocabulary)
    content = [word for word in _words(prompt) if word not in FUNCTION_WORDS]
    if len(unknown) == len(content):
        notes.append(
            f"{name} has no word of the prompt {plain_text(prompt)!r} in its vocabulary: the asset will be "
            "random"
        )
    for word, close in unknown:
        hint = f"; similar words: {', '.join(close)}" if close else ""
        notes.append(f"{name} does not have the word {word!r} in its vocabulary{hint}")
    return notes


def _words(prompt: str) -> list[str]:
    """The words and numbers of a prompt in lower case, each once and without weights."""
    plain = unicodedata.normalize("NFKC", plain_text(prompt).lower())
    return list(dict.fromkeys(re.findall(r"\d+(?:[.,]\d+)+|[^\W_]+(?:['-][^\W_]+)*", plain)))
