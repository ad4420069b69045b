"""From a given mesh to the same mesh painted, on the command line, with a tiny random SDXL."""

import hashlib
import json
import signal

import numpy as np
import pytest
import torch
import trimesh
from gltf_builder import one_box
from mesh_cases import lid, mirrored_halves
from meshes import cube_arrays, write_cube
from PIL import Image
from test_cli import checkpoint, run  # noqa: F401 - fixtures

from pgc3d import pipeline
from pgc3d.cli.app import main
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.run_directory import RunDirectory

TINY = [
    "--set", "representation.color_field.levels=4", "--set", "representation.color_field.log2_rows=10",
    "--set", "objectives.color.batch=1", "--set", "logging.log_every=2",
    "--set", "logging.preview_every=0", "--set", "logging.preview_resolution=32",
    "--steps", "4", "--resolution", "32", "--texture-size", "64",
]  # fmt: skip


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_mesh_is_painted_and_more(run, checkpoint, tmp_path):
    """Its vertices stay where the file has them, the file stays as it is, and the run needs it no longer."""
    moved = np.diag([2.0, 2.0, 2.0, 1.0])
    moved[:3, 3] = (5.0, -3.0, 1.0)
    mesh = write_cube(tmp_path / "cube.glb", matrix=moved)
    before = digest(mesh)
    code, _, err = run("texture", mesh, "a red chair", "--model", checkpoint, *TINY)
    assert code in (0, 5), err  # random weights make noise, which may be too fine for a tiny texture
    assert digest(mesh) == before
    folder = tmp_path / "runs" / "cube-a-red-chair-0"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"]["mesh"] == {"name": "cube.glb", "sha256": before}
    mesh.unlink()
    vertices, faces, _ = cube_arrays()
    found = read_mesh(folder / "asset.glb")
    expected = torch.from_numpy(vertices[faces] @ moved[:3, :3].T + moved[:3, 3]).float()
    torch.testing.assert_close(found.vertices[found.faces], expected)
    assert run("export", folder, "--format", "obj")[0] in (0, 5)
    assert (folder / "asset.obj").is_file()
    code, _, err = run("export", folder, "--faces", "4")
    assert (code, "geometry is fixed" in err) == (2, True)
    assert run("render", folder)[0] == 0


def wall(path, shape=(40, 64, 3)):
    """A picture of noise."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def test_a_stopped_run_ends_with_the_same_texture(run, checkpoint, tmp_path, monkeypatch):
    """Before a picture, too, and though the user's files are gone."""
    mesh, picture = write_cube(tmp_path / "cube.glb"), wall(tmp_path / "wall.png")
    arguments = ["texture", mesh, "a red chair", "--background", picture, "--model", checkpoint, *TINY]
    run(*arguments, "--out", tmp_path / "whole")
    given = digest(picture)

    generate = pipeline.generate

    def stopped(*given, on_event, stop, **named):
        def watch(event):
            on_event(event)
            if event.report is not None and event.report.step == 2:
                stop.signal = signal.SIGINT

        return generate(*given, on_event=watch, stop=stop, **named)

    monkeypatch.setattr(pipeline, "generate", stopped)
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in [*arguments, "--out", tmp_path / "stopped"]])
    assert ended.value.code == 130
    mesh.unlink()
    picture.unlink()
    assert run("resume", tmp_path / "stopped")[0] in (0, 5)
    for name in ("whole", "stopped"):
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["inputs"]["background"] == {"name": "wall.png", "sha256": given}
        assert manifest["files"]["background.png"] == digest(tmp_path / name / "background.png")
        assert manifest["background"] == "background.png"
    assert digest(tmp_path / "whole" / "background.png") == digest(tmp_path / "stopped" / "background.png")
    first, second = (
        RunDirectory.open(tmp_path / name).load_checkpoint("main").tensors for name in ("whole", "stopped")
    )
    for name, tensor in first.items():
        if name.startswith("representation") and tensor.is_floating_point():
            torch.testing.assert_close(tensor, second[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "the mesh file must exist"),
        ("points", "the mesh must have faces"),
        ("nan", "vertices must be finite"),
        ("remote", "in its own folder only"),
        ("no coordinates", "--uv own must have texture coordinates of every face"),
    ],
)
def test_a_mesh_that_cannot_be_used_is_one_line(run, checkpoint, tmp_path, content, line):
    path = tmp_path / "thing.obj"
    triangle = "v 0 0 0\nv 1 0 0\nv 0 1 {}\n"
    files = {
        "points": triangle.format(0),
        "nan": triangle.format("nan") + "f 1 2 3\n",
        "no coordinates": triangle.format(0) + "f 1 2 3\n",
    }
    if content == "remote":  # what is not needed for the surface may lie anywhere
        path = one_box().write(tmp_path / "thing.gltf", uri="../outside.bin")
    elif content is not None:
        path.write_text(files[content])
    own = ["--uv", "own"] if content == "no coordinates" else []
    code, out, err = run("texture", path, "a chair", "--model", checkpoint, *TINY, *own)
    assert (code, out) == (2, "")
    assert line in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_what_a_result_lacks_and_the_way_to_keep_coordinates_are_said(run, checkpoint, tmp_path):
    """In the first lines of a run; with --uv own both halves keep their one place in the image."""
    chest, halves = lid().write(tmp_path / "chest.glb"), mirrored_halves().write(tmp_path / "halves.glb")
    asked = ["texture", chest, "a chest", "--model", checkpoint, *TINY, "--set", "export.format=obj"]
    code, printed, err = run(*asked)
    assert code in (0, 5), err
    assert "not kept in the result: 2 nodes with their names and hierarchy, 1 animation" in printed + err
    code, printed, err = run("texture", halves, "a face", "--model", checkpoint, *TINY, "--out", "new")
    assert code in (0, 5), err
    said = printed + err
    assert "not kept" not in said
    assert "overlap on 50% of their area; new ones were made (xatlas); --uv own keeps them" in said
    code, _, err = run("texture", halves, "a face", "--uv", "own", "--model", checkpoint, *TINY)
    assert code in (0, 5), err
    folder = tmp_path / "runs" / "halves-a-face-0"
    assert "uv: own" in (folder / "config.yaml").read_text()
    found = read_mesh(folder / "asset.glb")
    first, second = found.uv[found.uv_faces[:12]].mean(1), found.uv[found.uv_faces[12:]].mean(1)
    torch.testing.assert_close(first, second)


def test_a_box_of_another_program_keeps_its_faces(run, checkpoint, tmp_path):
    """An STL file has neither texture coordinates nor shared corners, and stands along z."""
    box = trimesh.creation.box((1.0, 2.0, 3.0))
    box.export(tmp_path / "box.stl")
    code, _, err = run("texture", tmp_path / "box.stl", "a bed", "--up", "+z", "--model", checkpoint, *TINY)
    assert code in (0, 5), err
    found = read_mesh(tmp_path / "runs" / "box-a-bed-0" / "asset.glb")
    assert len(found.faces) == len(box.faces)
    size = (found.vertices.amax(0) - found.vertices.amin(0)).sort().values
    torch.testing.assert_close(size, torch.tensor([1.0, 2.0, 3.0]))


def test_a_background_picture_changes_what_is_painted_and_nothing_else(run, checkpoint, tmp_path):
    """Another picture, another texture; renders of the result stay on white. A lost one is one line."""
    mesh, found = write_cube(tmp_path / "cube.glb"), {}
    for name, shape in (("first.png", (32, 32, 3)), ("second.png", (32, 32))):
        out = tmp_path / name.removesuffix(".png")
        picture = wall(tmp_path / name, shape)
        arguments = ["--background", picture, "--model", checkpoint, *TINY, "--out", out]
        code, printed, err = run("texture", mesh, "a red chair", *arguments)
        assert code in (0, 5), err
        assert str(out / "background.png") in printed
        found[name] = RunDirectory.open(out).load_checkpoint("main").tensors
        assert run("render", out)[0] == 0
        assert np.asarray(Image.open(out / "views.png"))[0, 0].tolist() == [255, 255, 255]
    first, second = found.values()
    names = [name for name in first if name.startswith("representation.texture")]
    assert any(not torch.equal(first[name], second[name]) for name in names)
    config = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace("steps: 4", "steps: 6"))
    (out / "background.png").unlink()
    code, _, err = run("resume", out, "--edited")
    assert (code, "background.png must exist, an input of the run" in err.splitlines()[-1]) == (2, True)


BACKGROUND_ERRORS = {
    "missing": (["none.png"], "the image must be a file, got none at none.png"),
    "no picture": (["text.png"], "an image must be one of PNG, JPEG"),
    "see-through": (["glass.png"], "a background must be opaque, got glass.png"),
    "two": (["wall.png", "./other.png"], "must name at most one image file, got wall.png, ./other.png"),
    "misspelt": (["whte"], "got 'whte'; did you mean 'white'?"),
    "no file": (["image"], "must have an image, got none; use pgc3d texture ... --background FILE"),
    "unused": (
        ["wall.png", "--set", "objectives.color.backgrounds=[white]"],
        "the background wall.png must be used, but no backgrounds name 'image'",
    ),
}


@pytest.mark.parametrize(("values", "line"), BACKGROUND_ERRORS.values(), ids=BACKGROUND_ERRORS)
def test_a_background_that_cannot_be_used_is_one_line(run, checkpoint, tmp_path, values, line):
    mesh = write_cube(tmp_path / "cube.glb")
    wall(tmp_path / "wall.png")
    wall(tmp_path / "glass.png", (8, 8, 4))
    (tmp_path / "text.png").write_text("no picture")
    files = [value for value in values if "=" not in value and value != "--set"]
    arguments = [word for value in files for word in ("--background", value)] + values[len(files) :]
    code, out, err = run("texture", mesh, "a chair", "--model", checkpoint, *TINY, *arguments)
    assert (code, out) == (2, "")
    assert line in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
