"""`pgc3d models` against a hub on this machine."""

import base64
import hashlib
import json
from importlib.metadata import Distribution

import pytest
from hub import Hub, Repository, files_of, go_offline, online, serving
from tiny import write_tiny_controlnet, write_tiny_sd

from pgc3d.cli.app import main
from pgc3d.cli.options import configurations_of
from pgc3d.diffusion.aliases import ALIASES, BUNDLED
from pgc3d.diffusion.catalog import UNKNOWN, entries, entry, installed_hashes, verify
from pgc3d.diffusion.hub import PINNED
from pgc3d.errors import InputError, WeightsNotFoundError

TINY = "someone/tiny"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    folder = write_tiny_sd(root / "sd")
    hub = Hub()
    hub.repositories[TINY] = Repository(files_of(folder, half="both"), "c" * 40, licence="mit")
    net = files_of(write_tiny_controlnet(root / "net", folder))
    hub.repositories[ALIASES["sd-depth"]] = Repository(net, PINNED[ALIASES["sd-depth"]])
    with serving(hub):
        yield hub


@pytest.fixture
def hub(served, monkeypatch, tmp_path):
    online(monkeypatch, served, tmp_path)
    served.forget()
    return served


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    output = capsys.readouterr()
    return caught.value.code, output.out, output.err


def test_what_is_fetched_is_listed_without_a_network(hub, monkeypatch, capsys):
    assert TINY not in {item.name for item in entries()}
    code, printed, _ = run(capsys, "models", "pull", TINY, "--half")
    assert code == 0
    go_offline(monkeypatch)
    found = entry(TINY)
    assert (found.commit, found.licence) == ("c" * 40, "mit")
    assert str(found.folders[0]) == printed.strip()
    assert found.size == sum(hub.served.values())
    code, printed, _ = run(capsys, "models", "list", "--json")
    listed = {item["name"]: item for item in json.loads(printed)}
    assert listed[TINY]["size"] == found.size
    assert listed["sdxl"]["folders"] == []
    assert listed["sdxl"]["licence"] == UNKNOWN
    assert listed.keys() >= ALIASES.keys() | {BUNDLED}
    assert run(capsys, "models", "path", TINY)[1].strip() == str(found.folders[0])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_found(hub, capsys, damage):
    run(capsys, "models", "pull", TINY)
    found = entry(TINY)
    whole = verify(found)
    assert whole.problems == ()
    assert whole.files == whole.hashed
    code, printed, _ = run(capsys, "models", "verify", TINY)
    assert (code, "whole" in printed) == (0, True)
    file = (found.folders[0] / "unet" / "diffusion_pytorch_model.safetensors").resolve()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-1000])
    (problem,) = verify(found).problems
    assert "unet/diffusion_pytorch_model.safetensors" in problem
    code, printed, _ = run(capsys, "models", "verify", TINY)
    assert (code, "damaged" in printed) == (1, True)


def test_exactly_the_files_of_a_command_are_fetched(hub, capsys):
    line = f"texture --model {TINY} --set objectives.color.guidance.controls.depth.model=sd-depth"
    code, printed, _ = run(capsys, "models", "pull", "--for", line)
    assert code == 0
    assert len(printed.splitlines()) == 2
    # the weights of three parts and of the ControlNet, in the precision of this machine, once
    assert len(hub.weights) == 4
    assert not any(".fp16" in name for name in hub.weights)


def test_the_configurations_of_a_line_are_those_of_its_command():
    (config,) = configurations_of("text --guidance mini --steps 7")
    assert config.last.steps == 7
    (config,) = configurations_of("texture chair.glb 'a red chair' --guidance mini --seed 3")
    assert config.run.seed == 3
    (config,) = configurations_of("image --guidance mini --pipeline zero123")
    assert list(config.stages) == ["coarse", "fine"]


@pytest.mark.parametrize("line", ["", "resume runs/chair", "doctor"])
def test_lines_that_make_no_asset_are_refused(line):
    with pytest.raises(InputError, match="--for must begin with text, image, texture"):
        configurations_of(line)


def test_what_is_not_there_is_one_line(hub, capsys):
    with pytest.raises(WeightsNotFoundError, match="must be mini, an alias or a hub id"):
        entry("no such model")
    code, _, error = run(capsys, "models", "path", "sdxl")
    assert code != 0
    assert "pgc3d models pull sdxl" in error
    assert error.count("\n") == 1
    code, _, error = run(capsys, "models", "pull")
    assert (code != 0, "must have names" in error) == (True, True)
    assert run(capsys, "models", "verify", "sdxl")[:2] == (1, "sdxl: not on this disk\n")


def test_the_bundled_models_are_whole():
    found = entry(BUNDLED)
    assert len(found.folders) == 4
    assert verify(found).problems == ()


def test_an_installation_from_a_wheel_has_hashes(tmp_path):
    record = tmp_path / "pgc3d-1.dist-info" / "RECORD"
    record.parent.mkdir()
    hashes = {name: hashlib.sha256(name.encode()) for name in ("pgc3d/mini/a.json", "pgc3d/b.py")}
    encoded = {
        name: base64.urlsafe_b64encode(one.digest()).decode().rstrip("=") for name, one in hashes.items()
    }
    lines = [f"{name},sha256={text},5" for name, text in encoded.items()]
    record.write_text("\n".join([*lines, "pgc3d-1.dist-info/RECORD,,"]))
    found = installed_hashes(Distribution.at(record.parent))
    assert found == {tmp_path / name: one.hexdigest() for name, one in hashes.items()}
