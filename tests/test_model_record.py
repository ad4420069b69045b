"""How weights are named and recognised in a run's records."""

import dataclasses
from pathlib import Path

import pytest

from pgc3d.build.models import LocatedModel
from pgc3d.config import ModelConfig, load_config
from pgc3d.diffusion.files import ModelFolder
from pgc3d.errors import RunDirectoryError
from pgc3d.model_record import (
    SAMPLE,
    SAMPLES,
    WHOLE,
    describe_models,
    fingerprint,
    require_same_models,
    with_absolute_paths,
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model/unet", "vae", "control"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("style.safetensors", "linear.json", "model/model_index.json", "model/unet/config.json"):
        (tmp_path / name).write_text(name)
    return tmp_path


def named(**sections):
    return with_absolute_paths(load_config([sections]))


def test_what_is_on_this_disk_is_named_in_full(here):
    style = "style.safetensors"
    guidance = {"controls": {"depth": {"model": "control"}}, "linear_encoder": "linear.json"}
    found = named(
        models={
            "text": {
                "name": "model",
                "vae": "./vae",
                "loras": [f"{style}:0.5", style],
            },
            "image": {"name": "../" + here.name + "/model", "vae": "vae"},
        },
        objectives={"color": {"guidance": guidance}},
    )
    text, image = found.models["text"], found.models["image"]
    assert text.name == str(here / "model")
    assert text.vae == str(here / "vae")
    assert text.loras == (f"{here}/style.safetensors:0.5", f"{here}/style.safetensors")
    assert Path(image.name).samefile(here / "model")
    assert image.vae == str(here / "vae")
    guidance = found.last.objectives["color"].guidance
    assert guidance.controls["depth"].model == str(here / "control")
    assert guidance.linear_encoder == str(here / "linear.json")


@pytest.mark.parametrize("name", ["mini", "sdxl", "owner/name", "nowhere/at/all"])
def test_names_of_the_hub_and_the_bundled_model_stay(here, name):
    (here / "owner").write_text("a file of that name")
    (here / "mini").mkdir()
    config = ModelConfig(name=name, vae=name, loras=("owner/lora:0.5",))
    found = with_absolute_paths(dataclasses.replace(load_config(), models={"text": config}))
    assert found.models == {"text": config}
    assert with_absolute_paths(found) == found


def test_a_light_of_a_known_name_is_no_folder(here):
    (here / "studio").mkdir()
    (here / "room.png").write_text("a light")
    found = named(representation={"material": {"kind": "pbr", "lights": ["studio", "room.png"]}})
    assert found.last.representation.material.lights == ("studio", str(here / "room.png"))


def test_the_home_folder_is_found(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert named(models={"text": {"name": "~/model"}}).models["text"].name == str(here / "model")


def size(path, count):
    with path.open("wb") as stream:
        stream.truncate(count)
    return path


@pytest.mark.parametrize("count", [0, 1, WHOLE, WHOLE + 1, 3 * WHOLE])
def test_length_and_ends_of_a_file_count(tmp_path, count):
    path = size(tmp_path / "w.safetensors", count)
    found = {fingerprint(path)}
    assert fingerprint(path) in found
    found.add(fingerprint(size(path, count + 1)))
    for place in [0, count // 2, count - 1] if count > 2 else []:
        size(path, count)
        with path.open("r+b") as stream:
            # In the middle of a large file a block is read at least every `count / SAMPLES` bytes.
            start = max(0, place - count // SAMPLES) if count > WHOLE and place == count // 2 else place
            stream.seek(start)
            stream.write(b"x" * (place - start + 1))
        found.add(fingerprint(path))
    assert len(found) == (5 if count > 2 else 2)


def test_little_is_read_of_a_large_file(tmp_path):
    path = size(tmp_path / "w.safetensors", 2**36)  # a hole, which takes no room
    assert len(fingerprint(path)) == 64
    assert SAMPLES * SAMPLE <= 2**24


def test_names_and_places_in_a_folder_count(here):
    before = fingerprint(here / "model")
    (here / "model" / "README.md").write_text("not loaded")
    (here / "model" / "unet" / "deeper").mkdir()
    assert fingerprint(here / "model") == before
    (here / "model/unet/config.json").rename(here / "model/unet/other.json")
    assert fingerprint(here / "model") != before


def models(path, commit=None, name="sdxl", config=None):
    folder = ModelFolder(name=name, path=path, layout="sdxl", commit=commit)
    return {"text": LocatedModel(config=(config or load_config()).models["text"], folder=folder)}


COMMITS = ("a" * 40, "b" * 40)


def test_a_folder_with_the_name_of_an_alias_is_not_taken_for_it(here):
    record = describe_models(load_config(), models(here / "model", COMMITS[0]))
    require_same_models(record, load_config(), models(here / "model", COMMITS[0]))
    with pytest.raises(RunDirectoryError, match=r"must be sdxl of the hub.*resume from another folder"):
        require_same_models(record, load_config(), models(here / "model"))


def test_another_commit_of_the_hub_is_refused(here):
    record = describe_models(load_config(), models(here / "model", COMMITS[0]))
    with pytest.raises(RunDirectoryError, match=r"must be of commit aaaaaaaaaaaa.*got bbbbbbbbbbbb"):
        require_same_models(record, load_config(), models(here / "model", COMMITS[1]))


@pytest.mark.parametrize("part", ["model/unet/config.json", "vae/config.json", "linear.json", "room.png"])
def test_every_local_part_is_compared(here, part):
    (here / "vae" / "config.json").write_text("{}")
    (here / "room.png").write_text("a light")
    sections = {
        "representation": {"material": {"kind": "pbr", "lights": ["studio", "room.png"]}},
        "models": {"text": {"vae": "vae"}},
        "objectives": {"color": {"guidance": {"linear_encoder": "linear.json"}}},
    }
    config = named(**sections)
    found = models(here / "model", name="model", config=config)
    record = describe_models(config, found)
    require_same_models(record, config, found)
    (here / part).write_text("changed")
    with pytest.raises(RunDirectoryError, match="must be as when the run began, but its files have changed"):
        require_same_models(record, config, found)


def test_records_without_hashes_are_taken_as_they_are(here):
    record = {"models": {"text": {"name": "model", "commit": None}}, "loras": []}
    require_same_models(record, load_config(), models(here / "model", name="model"))
    require_same_models({}, load_config(), models(here / "model", COMMITS[0]))
