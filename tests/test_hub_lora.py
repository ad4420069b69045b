"""LoRA files of the hub: one of them is fetched, written down, and found again."""

import pytest
import torch
from hub import Hub, Repository, go_offline, online, serving
from safetensors.torch import save

from pgc3d.diffusion.lora import read_lora
from pgc3d.errors import ConfigError, WeightsNotFoundError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(Hub()) as hub:
        online(monkeypatch, hub, tmp_path)
        yield hub


LAYER = "lora_unet_mid_block_attentions_0_proj_in"
LORA = save({f"{LAYER}.lora_down.weight": torch.ones(2, 64), f"{LAYER}.lora_up.weight": torch.ones(64, 2)})


def test_lora_of_the_hub_is_recorded_and_found_again(hub, monkeypatch):
    files = {"README.md": b"", "style.safetensors": LORA, "preview.png": b"png"}
    hub.repositories["someone/style"] = Repository(files)
    lora = read_lora("someone/style:0.5", "sdxl")
    assert (lora.scale, lora.commit, lora.path.name) == (0.5, "a" * 40, "style.safetensors")
    assert hub.fetched == ["style.safetensors"]
    hub.repositories["someone/style"].commit = "b" * 40
    go_offline(monkeypatch)
    assert read_lora("someone/style", "sdxl").path == lora.path
    assert read_lora("someone/style:style.safetensors:-2", "sdxl").scale == -2.0
    with pytest.raises(
        WeightsNotFoundError, match=r"download someone/style --revision a+ other\.safetensors`"
    ):
        read_lora("someone/style:other.safetensors", "sdxl")


def test_lora_must_be_named_among_several_and_be_no_pickle(hub):
    several = {"one.safetensors": LORA, "deep/two.safetensors": LORA}
    hub.repositories["someone/many"] = Repository(several)
    with pytest.raises(ConfigError, match=r"must be named, as someone/many:one\.safetensors, got one"):
        read_lora("someone/many", "sdxl")
    assert read_lora("someone/many:deep/two.safetensors", "sdxl").path.name == "two.safetensors"
    hub.repositories["someone/usual"] = Repository(several | {"pytorch_lora_weights.safetensors": LORA})
    assert read_lora("someone/usual", "sdxl").path.name == "pytorch_lora_weights.safetensors"
    hub.repositories["someone/old"] = Repository({"pytorch_lora_weights.bin": b"\x80"})
    hub.forget()
    with pytest.raises(ConfigError, match=r"only pytorch_lora_weights\.bin, a pickle"):
        read_lora("someone/old", "sdxl")
    with pytest.raises(WeightsNotFoundError, match=r"the pickle .*pytorch_lora_weights\.bin"):
        read_lora("someone/old:pytorch_lora_weights.bin", "sdxl")
    assert hub.weights == []
