"""The store of models: loaded once for each use, freed, plain where they train."""

import dataclasses
import itertools
from dataclasses import replace

import torch
from members import CPU, HalvingClip, folders, make_config  # noqa: F401 - fixtures

from pgc3d import pgc
from pgc3d.build import models as build_models
from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.config import ModelConfig
from pgc3d.requirements import ModelUse, Requirements

# The store of the models.


def store_of(folders, **settings):
    config = make_config(folders.sd)
    config = replace(config, models={"text": ModelConfig(name=str(folders.sd)), "image": ModelConfig()})
    use = ModelUse(layouts=("sd",), controls=(str(folders.net),))
    located = locate_models(config, CPU, Requirements(models={"text": use}))
    return LoadedModels(located | {"other": located["text"]}, CPU, **settings), use


def test_a_model_is_loaded_once_for_each_way_of_using_it(folders, monkeypatch):
    loads = []
    load = build_models.load_latent_diffusion
    monkeypatch.setattr(
        build_models, "load_latent_diffusion", lambda *a, **k: loads.append(1) or load(*a, **k)
    )
    store, use = store_of(folders)
    ways = itertools.product((False, True), repeat=2)
    uses = [replace(use, trains=trains, decoder=decoder) for trains, decoder in ways]
    found = [store.get("text", replace(one, controls=())).diffusion for one in uses]
    # On a CPU a use that trains has the modules of the others: adapters are made in copies of them.
    assert len(loads) == len({id(model.unet) for model in found}) == 2
    assert found[0] is found[2]
    for one, model in zip(uses, found, strict=True):
        for layouts in (("sd",), ("sdxl", "sd")):
            assert store.get("text", replace(one, layouts=layouts)).diffusion is model
    assert len(loads) == 2
    assert not any(parameter.requires_grad for model in found for parameter in model.unet.parameters())
    latents = torch.zeros(1, 4, 8, 8)
    assert found[1].decode(latents).shape == (1, 64, 64, 3)
    assert sum(p.numel() for p in found[0].vae.decoder.parameters() if p.device.type != "meta") == 0
    controls = [store.get("text", use).controls[str(folders.net)] for _ in range(2)]
    assert controls[0] is controls[1]


def test_models_of_other_entries_are_freed(folders):
    store, use = store_of(folders)
    kept, freed = (store.get(name, use) for name in ("text", "other"))
    text = store.embed("text", ("a",))
    other = store.embed("other", ("a",))
    store.keep_only({"text"})
    assert store.get("text", use).diffusion is kept.diffusion
    assert store.get("text", use).controls[str(folders.net)] is kept.controls[str(folders.net)]
    assert store.embed("text", ("a",)) is text
    assert store.get("other", use).diffusion is not freed.diffusion
    assert store.embed("other", ("a",)) is not other
    assert torch.equal(store.embed("other", ("a",)).tokens, text.tokens)


def test_texts_are_encoded_once(folders, monkeypatch):
    calls = []
    encode = build_models.encode_prompts

    def counted(folder, texts, **options):
        calls.append(tuple(texts))
        return encode(folder, texts, **options)

    monkeypatch.setattr(build_models, "encode_prompts", counted)
    store, _ = store_of(folders)
    for _ in range(2):
        store.embed("text", ("a", "b"))
    store.embed("text", ("b", "a"))
    assert calls == [("a", "b"), ("b", "a")]


def test_a_use_that_trains_gets_the_plain_blocks(folders, monkeypatch):
    """As on a GPU, where the other uses get other blocks; the weights stay on the CPU here."""
    load = build_models.load_latent_diffusion
    monkeypatch.setattr(build_models, "load_latent_diffusion", lambda folder, **_: load(folder))
    monkeypatch.setattr(
        build_models,
        "accelerate",
        lambda model, **_: dataclasses.replace(model, predictor=lambda *a, **k: None),
    )
    store, use = store_of(folders)
    store.device = torch.device("cuda")
    use = replace(use, controls=())
    fast = store.get("text", use).diffusion
    plain = store.get("text", replace(use, trains=True)).diffusion
    assert fast.predictor is not None
    assert plain.predictor is None
    assert plain.encoder is None
    assert plain.unet is not fast.unet


# What several members need of one model.


def test_two_uses_of_a_model_become_one_that_serves_both():
    one = ModelUse(layouts=("sdxl", "sd"), controls=("a", "b"))
    other = ModelUse(layouts=("sd",), trains=True, decoder=True, controls=("b", "c"))
    assert one | other == ModelUse(layouts=("sd",), trains=True, decoder=True, controls=("a", "b", "c"))
    both = Requirements(models={"text": one}) | Requirements(prompt=True, models={"text": other})
    assert both == Requirements(prompt=True, models={"text": one | other})


def test_new_clip_bounds_what_reaches_the_parameters():
    rule = HalvingClip().build()
    first = rule(torch.full((1, 2, 2, 3), 0.5))
    assert torch.equal(first, torch.full((1, 2, 2, 3), 0.5))
    assert rule(torch.full((1, 2, 2, 3), 3.0)).max() <= 0.5
    assert pgc.statistics(first, first)["clipped_fraction"] == 0
