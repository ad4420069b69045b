"""An IP-Adapter of the hub: its file and the encoder that fits are fetched, nothing else, and found again."""

import json

import pytest
from hub import Hub, Repository, go_offline, online, serving
from tiny import write_tiny_adapter, write_tiny_sdxl

from pgc3d.diffusion.models import resolve_model
from pgc3d.diffusion.style import AUTHORS, FILES, resolve_style
from pgc3d.errors import WeightsNotFoundError
from pgc3d.run_config import StyleConfig


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(Hub()) as hub:
        online(monkeypatch, hub, tmp_path)
        yield hub


@pytest.fixture
def model(tmp_path):
    return resolve_model(write_tiny_sdxl(tmp_path / "model"))


def repository(tmp_path, model):
    """As the authors': the encoder that fits the file for SDXL lies in the other folder."""
    adapter = write_tiny_adapter(tmp_path / "adapter", model.path)
    own, encoder = FILES["sdxl"][0], adapter.parent / "image_encoder"
    other = json.dumps(json.loads((encoder / "config.json").read_text()) | {"projection_dim": 80})
    return Repository(
        {
            own: adapter,
            own.replace(".safetensors", ".bin"): b"\x80",
            "sdxl_models/ip-adapter_sdxl.safetensors": b"another",
            "sdxl_models/image_encoder/config.json": other.encode(),
            "sdxl_models/image_encoder/model.safetensors": b"another",
            "models/ip-adapter_sd15.safetensors": b"another",
            "models/image_encoder/config.json": encoder / "config.json",
            "models/image_encoder/model.safetensors": encoder / "model.safetensors",
            "models/image_encoder/pytorch_model.bin": b"\x80",
        }
    )


def test_the_authors_adapter_is_fetched_with_the_encoder_that_fits(hub, model, tmp_path, monkeypatch):
    hub.repositories[AUTHORS] = repository(tmp_path, model)
    first = resolve_style(StyleConfig(adapter=AUTHORS), model)
    assert hub.weights == ["models/image_encoder/model.safetensors", FILES["sdxl"][0]]
    assert (first.commit, first.encoder.parent.name, first.tokens) == ("a" * 40, "models", 4)
    hub.repositories[AUTHORS].commit = "b" * 40
    go_offline(monkeypatch)
    named = resolve_style(StyleConfig(adapter=f"{AUTHORS}:{FILES['sdxl'][0]}"), model)
    assert (named.path, named.encoder) == (first.path, first.encoder)
    assert resolve_style(StyleConfig(adapter=AUTHORS), model) == first


def test_an_adapter_without_its_encoder_is_refused(hub, model, tmp_path):
    whole = repository(tmp_path, model)
    alone = {name: file for name, file in whole.files.items() if not name.startswith("models/image_encoder")}
    hub.repositories["someone/alone"] = Repository(alone)
    with pytest.raises(WeightsNotFoundError, match=r"CLIP image encoder .*, got none, only .* of another"):
        resolve_style(StyleConfig(adapter=f"someone/alone:{FILES['sdxl'][0]}"), model)
