"""The benchmark from end to end on procedural objects, at small sizes."""

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pgc3d.cameras import fill_distance, orbit, reference_view
from pgc3d.cli.app import main
from pgc3d.cli.options import RunOptions, configured_item
from pgc3d.errors import InputError, RunDirectoryError, WeightsNotFoundError
from pgc3d.evaluation import benchmark
from pgc3d.evaluation.alignment import normalize_mesh, rigid
from pgc3d.evaluation.baselines import extrude, read_rgba
from pgc3d.evaluation.image_metrics import mask_iou
from pgc3d.evaluation.items import Item, read_items, write_items
from pgc3d.evaluation.measure import Measure, Result, record_key, score
from pgc3d.evaluation.perceptual import load_encoder_distance
from pgc3d.evaluation.procedural import procedural_asset, write_item
from pgc3d.evaluation.protocol import Protocol, compare
from pgc3d.evaluation.render import render_views
from pgc3d.evaluation.results import read_results
from pgc3d.evaluation.retrieval import load_retriever
from pgc3d.images import psnr
from pgc3d.kernels import share_cores
from pgc3d.mesh_io.mesh_file import read_mesh, write_mesh
from pgc3d.mini import text_model
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.task import Task
from pgc3d.view_config import ViewConfig

CPU = torch.device("cpu")
SMALL = Protocol(views=3, resolution=64, points=1024, surface_views=8, grid=24)
BEST = {"psnr": math.inf, "ssim": 1.0, "mask_iou": 1.0, "vae_distance": 0.0, "normal_degrees": 0.0}
BEST |= {f"input_{name}": BEST[name] for name in ("psnr", "ssim", "mask_iou")}
BEST |= {f"{part}chamfer": 0.0 for part in ("", "visible_")} | {"volume_iou": 1.0}
BEST |= {f"{part}f_score_{threshold}": 1.0 for part in ("", "visible_") for threshold in (0.05, 0.1)}


@pytest.fixture(scope="module")
def chair():
    return normalize_mesh(procedural_asset("one-armed-chair", rasterizer=CpuRasterizer()))


@pytest.fixture(scope="module")
def clip_model():
    distance = load_encoder_distance(text_model(), CPU)

    def clip_model(result, truth, **changes):
        return compare(
            result, truth, replace(SMALL, **changes),
            rasterizer=CpuRasterizer(), distance=distance, device=CPU, input_elevation_degrees=20.0,
        )  # fmt: skip

    return clip_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chair):
    """A list of one image item and one text item with a truth."""
    folder = tmp_path_factory.mktemp("benchmark")
    item = write_item(folder / "chair", "", chair, rasterizer=CpuRasterizer(), elevation_degrees=20.0)
    write_items(folder / "items.jsonl", [item, Item("a-chair", prompt="a chair", truth=item.truth)])
    return folder


def mirrored(asset):
    flip = torch.tensor([-1.0, 1.0, 1.0])
    return replace(
        asset,
        vertices=asset.vertices * flip, normals=asset.normals * flip, faces=asset.faces.flip(1),
        uv_faces=asset.uv_faces.flip(1), normal_faces=asset.normal_faces.flip(1),
    )  # fmt: skip


def test_a_mesh_against_itself_has_the_best_value_of_every_metric(chair, clip_model):
    assert clip_model(chair, chair) == pytest.approx(BEST)
    moved = replace(chair, vertices=3.0 * chair.vertices + 5.0)
    found = clip_model(moved, chair)
    assert found["psnr"] > 50
    assert found["chamfer"] < 1e-5
    assert found["volume_iou"] > 0.97


def test_a_mirrored_object_scores_clearly_worse(chair, clip_model):
    found = clip_model(mirrored(chair), chair)
    assert found["psnr"] < 30
    assert found["mask_iou"] < 0.97
    assert found["chamfer"] > 0.03
    assert found["f_score_0.05"] < 0.9
    assert found["volume_iou"] < 0.9


def test_alignment_finds_a_turned_object_in_all_metrics(chair, clip_model):
    turn = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    turned = rigid(chair, turn, torch.zeros(3))
    plain, aligned = clip_model(turned, chair), clip_model(turned, chair, alignment="rotation")
    assert aligned["rotation_degrees"] == pytest.approx(90.0, abs=3.0)
    assert aligned["psnr"] > plain["psnr"] + 5
    assert aligned["volume_iou"] > plain["volume_iou"] + 0.3


def test_settings_out_of_range_are_refused():
    for change in (
        {"views": 0},
        {"resolution": 100},
        {"elevation_degrees": 90.0},
        {"thresholds": (0.1, 0.1)},
    ):
        with pytest.raises(ValueError, match="must"):
            replace(SMALL, **change)


def test_creases_survive_the_file(tmp_path):
    """A box keeps flat sides: one normal a side in the render of the file that is read back."""
    box = procedural_asset("box", rasterizer=CpuRasterizer())
    (path,) = write_mesh(tmp_path / "box.glb", box, "glb")
    found = read_mesh(path)
    assert len(found.vertices) == 8
    flat = box.normals[box.normals_of_corners]
    torch.testing.assert_close(found.normals[found.normals_of_corners], flat, atol=1e-6, rtol=0)
    front = render_views(normalize_mesh(found), SMALL.input_camera(0.0), 32, rasterizer=CpuRasterizer())
    inside = front.alpha[0, ..., 0] > 0.999
    expected = torch.tensor([0.5, 0.5, 1.0]).expand(int(inside.sum()), 3)
    torch.testing.assert_close(front.normal[0][inside], expected, atol=1e-5, rtol=0)


def test_both_sides_of_a_face_are_lit(chair):
    camera = SMALL.novel_cameras()
    inside_out = replace(chair, normals=-chair.normals)
    first, second = (render_views(m, camera, 32, rasterizer=CpuRasterizer()) for m in (chair, inside_out))
    torch.testing.assert_close(first.color, second.color, atol=1e-6, rtol=0)


def test_the_input_shows_the_truth_from_azimuth_0(folder):
    picture = read_rgba(folder / "chair" / "input.png")
    truth, camera = read_mesh(folder / "chair" / "truth.glb"), reference_view(ViewConfig(20.0))
    view = render_views(truth, camera, len(picture), rasterizer=CpuRasterizer())
    torch.testing.assert_close(picture[None, ..., 3:], view.alpha, atol=0.51 / 255, rtol=0)
    white = picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:]
    assert psnr(white[None], view.color).item() > 45


@pytest.mark.parametrize("kind", ["hull", "billboard"])
@pytest.mark.parametrize("azimuth", [0.0, 2.0])
def test_a_baseline_looks_like_the_input_from_its_camera(chair, kind, azimuth):
    angle, fovy = torch.tensor([azimuth]), torch.tensor([0.7])
    camera = orbit(angle, torch.tensor([0.35]), fill_distance(fovy, torch.tensor([0.95])), fovy)
    view = render_views(chair, camera, 256, rasterizer=CpuRasterizer())
    color = torch.where(view.alpha > 0, 1 - (1 - view.color) / view.alpha.clamp(min=1e-6), 1.0)
    solid = extrude(torch.cat([color, view.alpha], -1)[0], camera, kind)
    assert solid.vertices.norm(dim=1).max() <= 1 + 1e-5
    corners = solid.vertices[solid.faces]
    volume = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume > 0  # closed, its faces turned outwards
    again = render_views(solid, camera, 256, rasterizer=CpuRasterizer())
    assert mask_iou(again.alpha, view.alpha).item() > 0.93  # an outline of 128 cells
    assert psnr(again.color, view.color).item() > 15


def test_pictures_that_are_no_input_are_refused(tmp_path):
    for name, picture in {
        "rgb": Image.new("RGB", (8, 8)),
        "wide": Image.new("RGBA", (9, 8), "red"),
        "empty": Image.new("RGBA", (8, 8), (0, 0, 0, 0)),
    }.items():
        picture.save(tmp_path / f"{name}.png")
        with pytest.raises(InputError, match="must"):
            read_rgba(tmp_path / f"{name}.png")


def test_items_round_trip(folder):
    items = read_items(folder / "items.jsonl")
    assert [item.name for item in items] == ["chair", "a-chair"]
    assert items[1].description == "a chair"
    write_items(folder / "again.jsonl", items)
    assert read_items(folder / "again.jsonl") == items


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: "),
        ('{"name": "x-3", "prompt": "x"}', "not end in -NUMBER"),
        ('{"name": "../x", "prompt": "x"}', "name must be of letters"),
        ('{"name": "x"}', "either a prompt or an image"),
        ('{"name": "x", "image": "none.png", "truth": "none.glb"}', "image must be a file"),
        ('{"name": "x", "promt": "x"}', "an item must be an object"),
        ('{"name": "x", "prompt": 3}', "prompt must be a string"),
        ('{"name": "x", "prompt": "x", "elevation_degrees": 95}', "must lie in"),
        (
            '{"name": "x", "prompt": "x", "frame": "input"}',
            "frame must be own, or input where there is",
        ),
        ('{"name": "x", "prompt": "x"}\n{"name": "x", "prompt": "y"}', "got x twice"),
        ("", "got none"),
    ],
)
def test_wrong_lists_are_one_line(tmp_path, line, message):
    path = tmp_path / "list.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=message) as found:
        read_items(path)
    assert "\n" not in str(found.value)


def test_results_are_found_by_item_and_seed(tmp_path):
    items = [Item("cup", prompt="a cup"), Item("red-cup", prompt="a red cup")]
    for name in ("cup.glb", "cup-3.stl", "red-cup-0/asset.obj", "other.glb", "cup-x.glb", "cup-1/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = {(r.item.name, r.seed, r.mesh.name) for r in benchmark.find_results(tmp_path, items)}
    assert found == {("cup", 0, "cup.glb"), ("cup", 3, "cup-3.stl"), ("red-cup", 0, "asset.obj")}
    (tmp_path / "cup-0.glb").write_bytes(b"")
    with pytest.raises(InputError, match="must be there once"):
        benchmark.find_results(tmp_path, items)


def run(folder, results, out, **options):
    said = []
    measure = Measure(protocol=SMALL)
    records = benchmark.evaluate(
        read_items(folder / "items.jsonl"), results, out=out, measure=measure, notify=said.append, **options
    )
    return records, said


def test_what_is_measured_is_not_measured_again(folder, tmp_path, chair):
    results = tmp_path / "mine"
    results.mkdir()
    write_mesh(results / "chair.glb", chair, "glb")
    (results / "a-chair.glb").write_bytes(b"no mesh")
    records, said = run(folder, [results], tmp_path / "out", baselines=["billboard"])
    assert "3 results, 3 to measure" in said
    assert [(r.method, r.item) for r in records] == [
        ("mine", "a-chair"), ("mine", "chair"), ("billboard", "chair")
    ]  # fmt: skip
    assert "must be readable" in records[0].error
    assert records[1].metrics["volume_iou"] == 1.0
    assert records[2].metrics["chamfer"] > 0.05
    assert read_results(tmp_path / "out" / "results.json") == records
    assert "| mine | billboard | billboard - mine |" in (tmp_path / "out" / "table.md").read_text()

    again, said = run(folder, [results], tmp_path / "out", baselines=["billboard"])
    assert "3 results, 0 to measure" in said
    assert again == records
    write_mesh(results / "a-chair.glb", chair, "glb")
    (tmp_path / "out" / "records" / "billboard" / "chair-0.json").write_text("{")
    mended, said = run(folder, [results], tmp_path / "out", baselines=["billboard"])
    assert "3 results, 2 to measure" in said
    assert not mended[0].error
    assert mended[2] == records[2]


def test_a_key_follows_the_colours_of_an_obj(tmp_path, chair):
    result = Result("mine", Item("a-chair", prompt="a chair"), 0, tmp_path / "chair.obj")
    keys = []
    for color in (chair.base_color, chair.base_color, 255 - chair.base_color):
        write_mesh(result.mesh, replace(chair, base_color=color), "obj")
        keys.append(record_key(result, Measure(protocol=SMALL)))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.slow
@pytest.mark.usefixtures("own_threads")
def test_processes_give_the_same_numbers(folder, tmp_path, chair):
    share_cores(2)  # as each of two has: sums are taken in as many parts
    results = tmp_path / "mine"
    results.mkdir()
    for seed in range(2):
        write_mesh(results / f"chair-{seed}.glb", mirrored(chair) if seed else chair, "glb")
    alone, said = run(folder, [results], tmp_path / "alone")
    assert "mine has no result of 1 of 2 items: a-chair" in said
    together, _ = run(folder, [results], tmp_path / "together", jobs=2)
    assert together == alone


def test_the_command_says_what_is_missing(folder, tmp_path, capsys):
    results = tmp_path / "mine"
    results.mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(folder / "items.jsonl"), str(results), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "got none of 2 items" in capsys.readouterr().err


def test_the_command_asks_the_bundled_judge(tmp_path, chair, capsys):
    write_items(tmp_path / "items.jsonl", [Item("a-chair", prompt="a chair")])
    (tmp_path / "mine").mkdir()
    write_mesh(tmp_path / "mine" / "a-chair.glb", chair, "glb")
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tmp_path / "items.jsonl"), str(tmp_path / "mine"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    assert "r_precision" in capsys.readouterr().out


def test_folders_that_cannot_be_made_are_one_line_before_anything_is_measured(folder, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a-chair.glb").write_bytes(b"no mesh")
    with pytest.raises(RunDirectoryError, match=r"file/out/records must be writable, got"):
        run(folder, [tmp_path / "results"], file / "out")
    items = read_items(folder / "items.jsonl")
    with pytest.raises(RunDirectoryError, match=r"file must be writable, got"):
        benchmark.make_missing(items, [file], pytest.fail, seeds=[0], notify=print)


def test_missing_results_are_made_once(folder, tmp_path, chair):
    made = []

    def make(item, seed, target):
        made.append((item.name, seed))
        target.mkdir()
        write_mesh(target / "asset.glb", chair, "glb")

    items, said = read_items(folder / "items.jsonl")[1:], []
    for _ in range(2):
        benchmark.make_missing(items, [tmp_path / "runs"], make, seeds=range(2), notify=said.append)
    assert made == [("a-chair", 0), ("a-chair", 1)]
    assert len(benchmark.find_results(tmp_path / "runs", items)) == 2
    with pytest.raises(InputError, match="FOLDER"):
        benchmark.make_missing(items, [], make, seeds=[0], notify=said.append)


@pytest.mark.parametrize(("pipeline", "prompt"), [(None, ""), ("zero123", ""), ("magic123", "a chair")])
def test_a_pipeline_that_needs_a_prompt_gets_the_caption(folder, pipeline, prompt):
    item = replace(read_items(folder / "items.jsonl")[0], caption="a chair")
    config = configured_item(item, guidance="mini", options=RunOptions(pipeline=pipeline, device="cpu"))
    assert config.view.elevation_degrees == item.elevation_degrees
    assert benchmark.task_of(item, config) == Task(prompt, image=item.image)
    horse = Item(name="horse", prompt="a horse")
    config = configured_item(horse, guidance="mini", options=RunOptions())
    assert benchmark.task_of(horse, config) == Task("a horse")


@pytest.fixture(scope="module")
def contrastive(tmp_path_factory):
    """A random CLIP at tiny size with transformers' own classes."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(text_model() / "tokenizer")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**small, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "captions.json").write_text(json.dumps(["a red chair", "a blue car", "a horse"]))
    return folder


def test_retrieval_is_that_of_the_whole_model(contrastive):
    """The true text is found in exactly the pictures in which transformers' own logits put it first."""
    retriever = load_retriever(contrastive, CPU)
    images = torch.rand(6, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    texts = ["a red chair", "a blue car", "a horse"]
    pixels = (images - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    inputs = retriever.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = retriever.model(**inputs, pixel_values=pixels.permute(0, 3, 1, 2)).logits_per_image
    for number, text in enumerate(texts):
        expected = (logits.argmax(1) == number).double().mean().item()
        assert retriever.r_precision(images, text.upper(), []) == expected
        assert retriever.r_precision(images, text, texts) == expected
    total = sum(retriever.r_precision(images, text, []) for text in texts)
    assert total == pytest.approx(1.0)


def test_a_text_item_is_retrieved(contrastive, folder, tmp_path, chair):
    items = read_items(folder / "items.jsonl")
    write_mesh(tmp_path / "a-chair.glb", chair, "glb")
    bare = replace(items[1], truth=None)
    (result,) = benchmark.find_results(tmp_path, [bare])
    record = score(result, Measure(protocol=SMALL, retriever=contrastive))
    assert record.metrics.keys() == {"r_precision"}
    assert 0 <= record.metrics["r_precision"] <= 1


def test_a_contrastive_model_that_is_not_there_is_named(contrastive, tmp_path):
    with pytest.raises(WeightsNotFoundError, match="train_contrastive"):
        load_retriever(tmp_path, CPU)
    torn = Path(shutil.copytree(contrastive, tmp_path / "torn"))
    os.truncate(torn / "model.safetensors", 1000)
    with pytest.raises(WeightsNotFoundError, match="torn must be a whole checkpoint part"):
        load_retriever(torn, CPU)
