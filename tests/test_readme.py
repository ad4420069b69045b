"""The commands of the README, run with tiny models and few steps."""

import pytest
from documentation import README
from meshes import write_cube
from PIL import Image, ImageDraw
from test_cli import checkpoint, run  # noqa: F401 - fixtures
from tiny import write_tiny_zero123

# Random weights make noise; small steps keep it coarser than the texture.
SMALL = [
    "--set", "logging.preview_every=0", "--set", "optimizer.lr_scale=0.01",
    "--steps", "2", "--resolution", "32", "--texture-size", "256",
]  # fmt: skip
SHAPE = ["--set", "representation.resolution=16", "--faces", "0", *SMALL]


@pytest.fixture
def options(tmp_path, checkpoint, tmp_path_factory):
    """What makes each command small, after its input files are made."""
    for name in ("chair.stl", "robot.glb"):
        write_cube(tmp_path / name)
    photo = Image.new("RGBA", (60, 80))
    ImageDraw.Draw(photo).ellipse((10, 10, 50, 70), fill=(200, 60, 30, 255))
    photo.save(tmp_path / "photo.png")
    views = write_tiny_zero123(tmp_path_factory.mktemp("models") / "views")
    return {
        "text": ["--model", checkpoint, *SHAPE],
        "image": ["--model", views, *SHAPE],
        "texture": ["--model", checkpoint, *SMALL],
        "export": ["--texture-size", "256"],
    }


def test_the_commands_run(run, options):
    lines = README.command_lines()
    assert {words[0] for words in lines} == set(options)
    for words in lines:
        code, out, err = run(*words, *options[words[0]])
        assert code == 0, (words, err)
        assert ("car.obj" if words[0] == "export" else "asset") in out
