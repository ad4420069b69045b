"""`pgc3d report`: the facts of a run, and the page of one run or two."""

import json
import re
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_runs import make_run, write_colored_cube
from sessions import built, session  # noqa: F401 - a fixture
from test_cli import run  # noqa: F401 - a fixture

from pgc3d.config import dump_config
from pgc3d.environment import describe_environment, processor_name
from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.mesh_io.gltf_writer import unpack_glb
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.records import seal
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.report.charts import Chart, Series, draw
from pgc3d.report.curves import read_curves
from pgc3d.report.facts import gather_run
from pgc3d.report.mesh_health import measure_mesh
from pgc3d.report.page import SCRIPTS, package_file, render_page
from pgc3d.report.write import write_report
from pgc3d.run_directory import RunDirectory

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' &amp; $style \u202e"
# Names in the code of three.js, neither of which is fetched: a namespace and the source of a formula.
NAMED = {"http://www.w3.org/1999/xhtml", "https://jcgt.org/published/0007/04/01/"}


class Page(HTMLParser):
    """The tags, attributes and data of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def having(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few and small images."""
    for name, value in {
        "report.asset.FRAMES": 4,
        "report.asset.SIDE": 32,
        "geometry.own_uv.RESOLUTION": 512,
    }.items():
        monkeypatch.setattr(f"pgc3d.{name}", value)


def facts(folder):
    return gather_run(folder, rasterizer=CpuRasterizer())


def test_facts_of_a_run(tmp_path):
    found = facts(make_run(tmp_path / "chair"))
    assert (found.name, found.finished, found.notes) == ("chair", True, ())
    assert [(stage.name, stage.steps, stage.planned) for stage in found.stages] == [
        ("coarse", 10, 10),
        ("fine", 20, 20),
    ]
    fine = next(c for c in found.curves if (c.stage, c.name) == ("fine", "color/clipped_fraction"))
    assert (fine.steps, fine.values) == ((5, 10, 15, 20), (0.125, 0.25, 0.375, 0.5))
    assert [(image.group, image.label) for image in found.images][-1] == ("fine", "step 20")
    assert found.settings["stages.fine.steps"] == "20"
    assert [(file.name, file.state) for file in found.files] == [
        ("config.yaml", "as recorded"),
        ("asset.glb", "as recorded"),
    ]
    assert found.asset.turntable.frames == 4
    health = found.asset.health
    assert (health.triangles, health.vertices, health.components) == (12, 8, 1)
    assert (health.closed, health.manifold, health.holes, health.handles) == (True, True, 0, 0)
    [surface] = health.surfaces
    assert (surface.image, surface.coordinates) == ((60, 40), "usable")
    assert surface.overlap < 0.01
    # a cell of 20 by 20 texels without its margins, for a side of length 2
    assert surface.density == pytest.approx([0.96 * 10] * 3, rel=1e-3)


def test_a_page_needs_no_network_and_runs_only_its_own_scripts(tmp_path):
    page = render_page([facts(make_run(tmp_path / "chair"))])
    parsed = Page(page)
    policy = next(item["content"] for item in parsed.having("meta") if "http-equiv" in item)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    addresses = [value for _, item in parsed.tags for key, value in item.items() if key in {"src", "href"}]
    assert len(addresses) > 5
    assert all(address.startswith("data:") for address in addresses)
    assert set(re.findall(r"(?:https?:)//[^\s\"'`)<]+", page)) <= NAMED
    assert not any(key.startswith("on") or key == "style" for _, item in parsed.tags for key in item)
    assert [item for item in parsed.having("script") if not item] == [{}] * len(SCRIPTS)
    assert not any("</script" in package_file(name) for name in SCRIPTS)
    assert "MIT License" in page or "The MIT License" in page


def test_text_of_a_run_stays_text(tmp_path):
    folder = make_run(tmp_path / "a&<b>", prompt=HOSTILE, device={HOSTILE: [HOSTILE]}, versions=[HOSTILE])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"stage": HOSTILE, "step": 1, HOSTILE: 2.0}) + "\n")
    (folder / "config.yaml").write_text(f"prompt: {json.dumps(HOSTILE)}\nstages: {{'../..': {{steps: 3}}}}\n")
    plain, page = (Page(render_page([facts(path)])) for path in (make_run(tmp_path / "plain"), folder))
    assert HOSTILE in page.text
    assert len(page.having("script")) == len(plain.having("script"))
    assert all(item["src"].startswith("data:") for item in page.having("img"))


def test_two_runs_are_compared(tmp_path):
    first = make_run(tmp_path / "one", prompt="a red chair")
    second = make_run(tmp_path / "two", steps=25, prompt="a blue chair", status="stopped by signal 15")
    text = write_report([first, second], tmp_path / "both.html").read_text()
    assert len(re.findall('class="viewer"', text)) == 2
    assert '<tr class="differs"><th scope="row">prompt</th><td>a red chair</td><td>a blue chair</td>' in text
    settings = text[text.index('id="settings"') : text.index("<details>", text.index('id="settings"'))]
    assert re.findall('scope="row">([^<]*)', settings) == ["stages.fine.steps"]
    assert "B: the run is not finished; its status is &#x27;stopped by signal 15&#x27;" in text
    assert '<polyline class="line c1 dashed"' in text


def test_the_folders_of_models_are_not_told_whole(tmp_path):
    models = {
        "sdxl": {"name": "/home/jane/models/sdxl", "sha256": "0" * 64},
        "sd": {"name": "a/sd", "commit": "1" * 40},
    }
    lora = {"path": "/home/jane/loras/paint.safetensors", "scale": 0.5, "sha256": "2" * 64}
    text = render_page([facts(make_run(tmp_path / "chair", models=models, loras=[lora]))])
    assert "jane" not in text
    for part in ("model sdxl: models/sdxl<", "model sd: a/sd<", "LoRA loras/paint.safetensors x 0.5<"):
        assert part in text


def test_a_run_that_was_killed_is_not_running(tmp_path):
    device = {"type": "cpu", "name": "a processor"}
    folder = make_run(tmp_path / "chair", asset=False, status="running", device=device)
    for status in ("interrupted", "running"):
        with RunDirectory.open(folder) if status == "running" else nullcontext():
            text = "".join(Page(render_page([facts(folder)])).text)
        assert f"its status is {status!r}" in text
        assert "a processor (cpu)" in text


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="it has another place")
def test_a_processor_has_the_name_that_the_system_tells():
    told, found = Path("/proc/cpuinfo").read_text(), describe_environment(torch.device("cpu"))["device"]
    assert found == {"type": "cpu", "name": processor_name()}
    assert found["name"] not in {"", "cpu", "unknown"}
    assert f": {found['name']}\n" in told or "model name" not in told


def test_a_run_that_is_not_finished_has_a_report(tmp_path):
    folder = make_run(tmp_path / "chair", asset=False, status="running")
    (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes() + b'{"stage": "fi')
    (folder / "previews" / "fine" / "step-000020.png").write_bytes(b"no image")
    found = facts(folder)
    assert not found.finished
    text = render_page([found])
    for note in (
        "the run is not finished",
        "the run has no asset file",
        "1 lines of metrics.jsonl are damaged",
    ):
        assert note in text
    assert "step-000020.png cannot be read" in text
    assert 'class="viewer"' not in text


def test_changed_and_missing_files_are_noted(tmp_path):
    folder = make_run(tmp_path / "chair", files={"asset.glb": "0" * 64, "gone.glb": "1" * 64, "/etc/x": "2"})
    states = {file.name: file.state for file in facts(folder).files}
    assert states == {
        "config.yaml": "as recorded",
        "asset.glb": "changed",
        "gone.glb": "missing",
        "/etc/x": "outside the folder",
    }


def test_links_are_refused(tmp_path):
    folder = make_run(tmp_path / "chair", files={"sub/asset.glb": "0"})
    (tmp_path / "other").mkdir()
    write_colored_cube(tmp_path / "other" / "asset.glb")
    (folder / "sub").symlink_to(tmp_path / "other")
    with pytest.raises(RunDirectoryError, match="must be a folder of the run itself"):
        facts(folder)


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl"])
def test_other_formats_are_displayed_as_glb(tmp_path, suffix):
    folder = make_run(tmp_path / "chair", asset=False)
    write_colored_cube(folder / f"asset{suffix}")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"files": {f"asset{suffix}": "0"}}
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)))
    asset = facts(folder).asset
    (tmp_path / "shown.glb").write_bytes(asset.glb)
    assert len(read_mesh(tmp_path / "shown.glb").faces) == 12
    document, _ = unpack_glb(asset.glb)
    [material] = document["materials"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    [primitive] = document["meshes"][0]["primitives"]
    assert primitive["material"] == 0
    assert "NORMAL" in primitive["attributes"]
    assert asset.notes == (f"asset{suffix} is displayed as a GLB",)


def test_damaged_assets_are_noted(tmp_path):
    folder = make_run(tmp_path / "chair")
    (folder / "asset.glb").write_bytes(b"glTF damaged")
    found = facts(folder)
    assert found.asset.glb is None
    assert "no asset to display" in render_page([found])


def test_unsound_meshes_are_measured(tmp_path):
    asset = read_mesh(write_colored_cube(tmp_path / "cube.glb"))
    turned = asset.faces.clone()
    turned[0] = turned[0].flip(0)
    health = measure_mesh(replaced(asset, faces=turned), rasterizer=CpuRasterizer())
    assert (health.manifold, health.turned_edges) == (False, 3)
    keep = torch.arange(12) != 3
    opened = replaced(asset, faces=asset.faces[keep], uv_faces=asset.uv_faces[keep])
    health = measure_mesh(opened, rasterizer=CpuRasterizer())
    assert (health.closed, health.open_edges, health.holes, health.manifold) == (False, 3, 1, True)
    more = torch.cat([asset.faces, asset.faces[:1]])
    health = measure_mesh(
        replaced(asset, faces=more, uv_faces=torch.cat([asset.uv_faces, asset.uv_faces[:1]])),
        rasterizer=CpuRasterizer(),
    )
    assert health.crowded_edges == 3
    assert health.surfaces[0].overlap == pytest.approx(1 / 13, abs=0.01)


def replaced(asset, **changes):
    """The asset with other faces, and the normals of its vertices."""
    from dataclasses import replace

    normals = torch.nn.functional.normalize(asset.vertices, dim=1)
    return replace(asset, normals=normals, normal_faces=None, **changes)


def test_damaged_metrics_are_left_out():
    lines = [
        b'{"step": 1, "x": 1}',
        b"[1]",
        b'{"step": "1"}',
        b"\xff",
        b'{"step": 2, "x": NaN, "y": true}',
        b"",
    ]
    [curve], damaged = read_curves(b"\n".join(lines))
    assert (curve.stage, curve.name, curve.steps, damaged) == ("main", "x", (1, 2), 3)
    assert str(curve.values) == "(1.0, nan)"


@given(
    st.lists(st.tuples(st.integers(0, 2**53), st.floats()), max_size=900, unique_by=lambda point: point[0]),
    st.booleans(),
)
def test_every_curve_can_be_drawn(points, logarithmic):
    lines = "\n".join(json.dumps({"step": step, "x": value}) for step, value in points)
    curves, _ = read_curves(lines.encode())
    for curve in curves:
        series = Series("x", curve.steps, curve.values)
        svg = draw(Chart("x", (series,), logarithmic=logarithmic))
        for numbers in re.findall('points="([^"]*)"', svg):
            assert all(-1 <= float(value) <= 461 for value in re.split("[ ,]", numbers))


def test_facts_of_what_a_session_wrote(session):
    session.run.config.write_text(dump_config(session.config))
    preview = Image.new("RGB", (8, 8))
    with session.recorded():
        assert session.optimize("main", built(), None, preview.save)
    found = facts(session.run.path)
    assert (found.finished, found.stages[0].steps, found.stages[0].planned) == (True, 12, 12)
    clipped = next(curve for curve in found.curves if curve.name == "color/clipped_fraction")
    assert clipped.steps == (4, 8, 12)
    assert [image.label for image in found.images] == ["step 5", "step 10", "step 12"]
    text = render_page([found])
    for part in ("clipped_fraction", "peak memory, resident", "all parts", "the run has no asset file"):
        assert part in text


def test_command(run, tmp_path):
    make_run(tmp_path / "chair", prompt="a <b>")
    assert run("report", "chair") == (0, "chair/report.html\n", "")
    assert run("report", "chair", "chair", "--out", "new.html") == (0, "new.html\n", "")
    assert run("report", "chair", "--out", "chair")[1] == "chair/report-2.html\n"
    text = (tmp_path / "chair" / "report.html").read_text()
    for name in ("summary", "asset", "images", "mesh", "clipping", "curves", "costs", "settings", "records"):
        assert f'<section id="{name}">' in text
    assert "<td>a &lt;b&gt;</td>" in text
    code, _, err = run("report", "none")
    assert (code, "none must be the folder of a run" in err) == (2, True)
    assert run("report", "chair", "--out", "no/such/report.html")[0] == 2


def test_more_than_two_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match="must have one run or two, got 3"):
        write_report([tmp_path] * 3)
