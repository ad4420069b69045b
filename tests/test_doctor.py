"""`pgc3d doctor`: what it finds on this machine, and what it says where something is wrong."""

import json

import pytest
import torch

from pgc3d import doctor
from pgc3d.cli.app import main
from pgc3d.rendering import build_rasterizer, selftest
from pgc3d.types import Fragments


def states(monkeypatch, **settings):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return {finding.name: finding for finding in doctor.examine()}


def test_this_machine_can_run(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--json"])
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert {"python", "torch", "memory", "rasteriser", "bundled models", "disk", "hub"} <= found.keys()
    assert found["rasteriser"]["state"] == found["bundled models"]["state"] == "ok"
    broken = [item for item in found.values() if item["state"] == "broken"]
    assert caught.value.code == bool(broken)
    assert all(item["remedy"] for item in found.values() if item["state"] != "ok")


def test_the_token_is_never_printed(monkeypatch):
    secret = "hf_" + "s3cr3t" * 5
    found = states(monkeypatch, HF_TOKEN=secret)
    assert found["token of the hub"].found == "present"
    assert not any(secret in text for item in found.values() for text in (item.found, item.remedy))


def test_a_cache_that_cannot_be_written_is_broken(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    found = states(monkeypatch, XDG_CACHE_HOME=str(blocked / "below"))["cache of pgc3d"]
    assert found.state == "broken"
    assert "XDG_CACHE_HOME" in found.remedy


def test_a_cpu_build_beside_a_driver_is_broken(monkeypatch):
    monkeypatch.setattr(doctor, "_driver", lambda: "580.1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    found = states(monkeypatch)["torch"]
    assert (found.state, "CUDA build of torch" in found.remedy) == ("broken", True)


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such device")

    monkeypatch.setattr(doctor, "compare_rasterizers", fail)
    found = states(monkeypatch)["rasterizers"]
    assert (found.state, "no such device" in found.found) == ("broken", True)


@pytest.mark.parametrize(
    ("change", "least"),
    [(lambda data: data.flip(1), 0.1), (lambda data: data.flip(2), 0.1), (lambda data: data * 0, 0.3)],
    ids=["upside down", "mirrored", "empty"],
)
def test_a_wrong_rasteriser_fails_the_self_test(monkeypatch, change, least):
    class Wrong:
        def rasterize(self, *arguments):
            return Fragments(change(build_rasterizer("auto", torch.device("cpu")).rasterize(*arguments).data))

    assert selftest.compare_rasterizers(torch.device("cpu")) == 0.0
    monkeypatch.setattr(selftest, "build_rasterizer", lambda *_: Wrong())
    assert selftest.compare_rasterizers(torch.device("cpu")) > least


@pytest.mark.gpu
def test_the_rasteriser_of_a_gpu_passes():
    assert selftest.compare_rasterizers(torch.device("cuda")) == 0.0
