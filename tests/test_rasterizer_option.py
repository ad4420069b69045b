"""`--rasterizer` of the commands that make an asset."""

import numba
import pytest
import torch
from meshes import write_cube
from PIL import Image
from test_cli import TINY, checkpoint, run  # noqa: F401 - fixtures

from pgc3d.config import load_config

COMMANDS = ("text", "image", "texture")


def arguments(command, folder):
    """A command with inputs that are there."""
    if command == "text":
        return ["text", "a red chair"]
    if command == "image":
        picture = Image.new("RGBA", (96, 96))
        picture.paste((200, 40, 40, 255), (24, 24, 72, 72))
        picture.save(folder / "picture.png")
        return ["image", "picture.png"]
    return ["texture", write_cube(folder / "cube.glb"), "a red chair"]


def refused(run, folder, command, *options):
    """The only line of a command that ends before it has made a folder."""
    code, out, err = run(*arguments(command, folder), "--guidance", "mini", "--out", "made", *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert not (folder / "made").exists()
    assert not (folder / "runs").exists()
    return err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["triton", "nvdiffrast"])
def test_a_rasterizer_of_a_gpu_is_refused_on_a_cpu(run, tmp_path, command, name):
    line = refused(run, tmp_path, command, "--device", "cpu", "--rasterizer", name)
    assert line.startswith(f"error: the {name} rasterizer must have ") or (
        name == "nvdiffrast" and name in line
    )
    assert "--device cpu" in line or "pip install" in line


@pytest.mark.gpu
@pytest.mark.parametrize("command", COMMANDS)
def test_the_rasterizer_of_a_cpu_is_refused_on_a_gpu(run, tmp_path, command):
    line = refused(run, tmp_path, command, "--device", "cuda", "--rasterizer", "cpu")
    assert line.startswith("error: the cpu rasterizer must have tensors on the CPU, got cuda")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_rasterizer_is_refused(run, tmp_path, command):
    assert "Invalid value for '--rasterizer'" in refused(run, tmp_path, command, "--rasterizer", "gl")


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is triton where there is CUDA")
def test_auto_is_the_rasterizer_of_the_device(run, checkpoint, tmp_path):
    """The same asset, and the option stands in the run's configuration."""
    numba.get_num_threads()  # its start sets the number of torch's threads, on which the last bits depend
    meshes = []
    for name in ("auto", "cpu"):
        options = ["--model", checkpoint, "--rasterizer", name, "--device", "cpu", *TINY, "--steps", "2"]
        code, _, err = run("text", "a red chair", "--out", name, *options)
        assert code in (0, 5), err  # random weights make noise, which may be too fine for a tiny texture
        assert load_config([tmp_path / name / "config.yaml"]).run.rasterizer == name
        meshes.append((tmp_path / name / "asset.glb").read_bytes())
    assert meshes[0] == meshes[1]
