"""Lines for the user about the models and the prompt of a run, before it begins."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pgc3d.build.models import NOVEL_VIEW, LocatedModel
from pgc3d.config import Config
from pgc3d.diffusion.aliases import BUNDLED
from pgc3d.diffusion.kinds import why_distilled, zeros_for_empty_prompt
from pgc3d.prompt_weights import weight_note
from pgc3d.prompts import prompt_notes, unknown_words

LARGEST_DISTILLED = 2.0  # usual guidance scales of models that were distilled for a few steps are below


def run_notes(prompt: str, config: Config, located: Mapping[str, LocatedModel]) -> list[str]:
    """Lines about words of the prompt that have no effect, and settings that a model was not trained for.

    Args:
        prompt: may be empty.
        config: of the run.
        located: its models, by their entries in `models`.

    Raises:
        InputError: a weight in a prompt or a negative prompt is not valid.
    """
    notes: list[str] = []
    for name, model in located.items():
        if model.folder.layout == NOVEL_VIEW:
            notes += _other_cameras(config, model)
            continue
        notes += prompt_notes(prompt, model.folder.vocabulary or (), model.config.name)
        notes += _negative_weights(config, name)
        notes += _unknown_negatives(config, name, model)
        if model.config.name != BUNDLED:
            notes += _text_model_notes(config, name, model)
    return notes


def _negative_weights(config: Config, name: str) -> list[str]:
    """Lines about the weights in the negative prompts of a model, each once."""
    negatives = (getattr(item, "negative_prompt", "") for item in _guidances(config, name).values())
    notes = (weight_note(negative) for negative in negatives)
    return list(dict.fromkeys(note.replace("the prompt", "the negative prompt") for note in notes if note))


def _unknown_negatives(config: Config, name: str, model: LocatedModel) -> Iterator[str]:
    """Lines about negative prompts with words that a model of a fixed vocabulary does not have."""
    for key, guidance in _guidances(config, name).items():
        negative = getattr(guidance, "negative_prompt", "")
        unknown = unknown_words(negative, model.folder.vocabulary) if model.folder.vocabulary else []
        if unknown:
            words = ", ".join(repr(word) for word, _ in unknown)
            yield (
                f"{model.config.name} does not have {words} of the negative prompt in its vocabulary: "
                f"colours can come out wrong; --set {key}.negative_prompt='' removes it"
            )


def _other_cameras(config: Config, model: LocatedModel) -> Iterator[str]:
    """Lines about settings of cameras that differ from those that a novel-view model was trained with."""
    used = {**vars(config.view), "border": config.image.border}
    for key, value in model.folder.cameras.items():
        if not math.isclose(used[key], value):
            yield f"{model.folder.name} was trained with {key} {value:g}, this run has {used[key]:g}"


def _text_model_notes(config: Config, name: str, model: LocatedModel) -> list[str]:
    settings = _guidances(config, name)
    notes = []
    empty = "" in {getattr(item, "negative_prompt", None) for item in settings.values()}
    if empty and zeros_for_empty_prompt(model.folder.path):
        zeros = model.config.empty_prompt == "zeros"
        other = "text, as the method's own code does" if zeros else "zeros, as the model's pipeline does"
        notes.append(
            f"the empty negative prompt is {'zeros' if zeros else 'encoded as text'}; --set "
            f"models.{name}.empty_prompt={'text' if zeros else 'zeros'} uses {other}"
        )
    reasons = {lora: why_distilled(lora, None) for lora in model.config.loras}
    reasons[model.config.name] = why_distilled(model.config.name, model.folder.path)
    for source, reason in reasons.items():
        if reason:
            notes += [_about_distilled(source, reason, key, item) for key, item in settings.items()]
    return [note for note in notes if note]


def _guidances(config: Config, name: str) -> dict[str, Any]:
    """The guidances that use an entry of `models`, by their key in the configuration."""
    several = len(config.stages) > 1
    return {
        f"{f'stages.{stage}.' if several else ''}objectives.{key}.guidance": objective.guidance
        for stage, settings in config.stages.items()
        for key, objective in settings.objectives.items()
        if name in objective.guidance.requires().models
    }


def _about_distilled(name: str, reason: str, key: str, guidance: Any) -> str:
    """A line where a distilled model is used with the settings of others, else ""."""
    advice = []
    scale, resolution = getattr(guidance, "guidance_scale", 0.0), getattr(guidance, "resolution", 0)
    if scale > LARGEST_DISTILLED:
        advice.append(f"{key}.guidance_scale={LARGEST_DISTILLED:g} (now {scale:g})")
    if resolution:
        advice.append(f"{key}.resolution=0 for its own (now {resolution})")
    if not advice:
        return ""
    return (
        f"{name} was distilled for a few steps without guidance, by {reason}: the presets are not made for "
        f"such a model; set {' and '.join(advice)}, or use the model that it was distilled from"
    )
