from dataclasses import replace

import pytest
import torch
from tiny import write_tiny_sd, write_tiny_sdxl

from pgc3d.diffusion.hub import cache_folder
from pgc3d.diffusion.models import resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.diffusion.text_cache import KEPT, cached

CPU = torch.device("cpu")
TEXTS = ("a red chair", "")


@pytest.fixture(scope="module", params=[write_tiny_sdxl, write_tiny_sd])
def folder(request, tmp_path_factory):
    return resolve_model(request.param(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encode(folder, texts=TEXTS, **changes):
    """The embedding, and whether text encoders made it."""
    made = []

    def make():
        made.append(True)
        return encode_prompts(folder, texts)

    found = cached(make, folder, texts, **({"device": CPU, "dtype": torch.float32} | changes))
    return found, bool(made)


def equal(first, second):
    pooled = (first.pooled is None) == (second.pooled is None)
    return torch.equal(first.tokens, second.tokens) and (
        pooled and (first.pooled is None or torch.equal(first.pooled, second.pooled))
    )


def test_the_second_time_it_is_the_same_and_nothing_is_encoded(folder):
    first, made = encode(folder)
    second, made_again = encode(folder)
    assert (made, made_again) == (True, False)
    assert equal(first, second)


@pytest.mark.parametrize(
    "change", [{"texts": ("a red chair.", "")}, {"dtype": torch.float16}, {"empty_zeros": True}]
)
def test_whatever_the_content_depends_on_is_part_of_the_name(folder, change):
    encode(folder)
    assert encode(folder, **change)[1]


def test_other_encoders_are_used_again(folder, tmp_path):
    encode(folder)
    weights = next((folder.path / "text_encoder").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content)  # the same size, another time
    assert encode(folder)[1]


@pytest.mark.parametrize("damage", [b"", b"nothing", None])
def test_a_damaged_file_is_made_again(folder, damage):
    first, _ = encode(folder)
    (path,) = (cache_folder() / "embeddings").iterdir()
    path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    again, made = encode(folder)
    assert made
    assert equal(first, again)
    assert not encode(folder)[1]


def test_only_the_newest_are_kept(folder, monkeypatch):
    monkeypatch.setattr("pgc3d.diffusion.text_cache.KEPT", 3)
    embedding = encode_prompts(folder, ["x"])
    for number in range(6):
        cached(lambda: embedding, folder, [str(number)], device=CPU, dtype=torch.float32)
    assert len(list((cache_folder() / "embeddings").iterdir())) == 3 < KEPT


def test_a_folder_that_cannot_be_written_is_no_error(folder, monkeypatch, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert encode(folder)[1]
    assert "cannot be kept" in caplog.text


def test_models_in_one_file_are_told_apart(folder, tmp_path):
    embedding, _ = encode(folder)
    file, made = tmp_path / "weights.safetensors", []
    file.write_bytes(b"1")

    def make():
        made.append(True)
        return embedding

    cached(make, replace(folder, file=file), TEXTS, device=CPU, dtype=torch.float32)
    assert made
