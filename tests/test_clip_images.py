"""Images of what clipping does: what they show, and that a run without them is the same."""

import pytest
import torch
from PIL import Image
from sessions import built, color, no_preview, session  # noqa: F401 - a fixture

from pgc3d.clip_images import DECADES, SIDE, VIEWS, ClipImages, RecordedClip, draw
from pgc3d.pgc import BatchRule, GlobalScale, PixelClip, Rows


def test_length_and_removed_part_are_drawn():
    """A pixel of the largest gradient, of which clipping leaves a quarter, beside one that stays whole."""
    before = torch.zeros(1, 4, 4, 3)
    before[0, 0, 0] = torch.tensor([0.0, 4.0, 0.0])
    before[0, 0, 1] = torch.tensor([4.0 * 10 ** (-DECADES / 2), 0.0, 0.0])
    after = before.clone()
    after[0, 0, 0] /= 4
    image = draw({"color": (before, after)})
    assert image.shape == (8, 4, 3)
    length, removed = image[:4].float().sum(-1) / 765, image[4:].float().sum(-1) / 765
    assert length[0, :3].tolist() == pytest.approx([1.0, 0.5, 0.0], abs=0.01)
    assert removed[0, :3].tolist() == pytest.approx([0.75, 0.0, 0.0], abs=0.01)


def test_zero_and_broken_gradients_are_black():
    broken = torch.full((1, 4, 4, 3), float("nan"))
    for gradient in (torch.zeros(1, 4, 4, 4), broken):
        assert int(draw({"color": (gradient, torch.zeros_like(gradient))}).max()) == 0


def test_images_are_small_and_rows_are_padded():
    large, small = torch.rand(VIEWS + 2, 300, 300, 3), torch.rand(1, 300, 300, 4)
    image = draw({"a": (large, large), "b": (small, small / 2)})
    assert image.shape == (4 * SIDE, VIEWS * SIDE, 3)


def test_a_recorded_clip_keeps_only_while_it_is_armed():
    clip, gradient = RecordedClip(PixelClip(threshold=0.1).build()), torch.randn(1, 2, 2, 3)
    plain = PixelClip(threshold=0.1).build()(gradient)
    assert torch.equal(clip(gradient), plain)
    assert clip.kept is None
    clip.armed = True
    clip(gradient)
    assert torch.equal(clip.kept[0], gradient)
    assert torch.equal(clip.kept[1], plain)


def test_a_recorded_rule_of_a_batch_still_clips_the_rows_of_one_process():
    gradient, rule = torch.randn(4, 2, 2, 3), GlobalScale(threshold=0.1).build()
    clip, largest = RecordedClip(rule), gradient.abs().flatten(1).amax(1)
    clip.armed = True
    assert isinstance(clip, BatchRule)
    nothing = clip.clip_rows(gradient[:0], Rows(0, 4, lambda own: own + largest))
    assert (len(nothing), clip.kept) == (0, None)
    others = torch.where(torch.tensor([True, False, False, True]), largest, 0.0)
    clipped = clip.clip_rows(gradient[1:3], Rows(1, 4, lambda own: own + others))
    assert torch.equal(clipped, rule(gradient)[1:3])
    assert torch.equal(clip.kept[0], gradient[1:3])
    assert torch.equal(clip.kept[1], clipped)


def test_nothing_is_kept_between_images(tmp_path):
    images = ClipImages(built().problem.objectives, lambda step: step % 3 == 0)
    clip = images.objectives["color"].clip
    for step in range(1, 7):
        images.begin(step)
        clip(torch.randn(1, 4, 4, 3))
        assert (clip.kept is not None) == (step % 3 == 0)
        assert images.write(tmp_path / f"{step}.png") == (step % 3 == 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.png", "6.png"]


def test_a_run_writes_them_beside_its_previews(session):
    events = []
    session.on_event = events.append
    parts = built()
    assert session.optimize("main", parts, None, no_preview)
    folder = session.run.path / "previews" / "main"
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{kind}-{step:06d}.png" for kind in ("step", "clipping") for step in (5, 10, 12)}
    with Image.open(folder / "clipping-000005.png") as image:
        assert image.mode == "RGB"
    assert [event.file.name for event in events if event.kind == "clipping"] == [
        "clipping-000005.png",
        "clipping-000010.png",
        "clipping-000012.png",
    ]
