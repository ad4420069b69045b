import errno
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pgc3d import disk
from pgc3d.errors import InputError
from pgc3d.exporting.turntable import render_views, tile, write_sheet, write_turntable
from pgc3d.images import to_bytes
from pgc3d.types import Cameras, Rendering


def render_azimuth(cameras: Cameras, height: int = 33, width: int = 47) -> Rendering:
    """Flat pictures whose red channel tells the azimuth."""
    color = torch.zeros(len(cameras), height, width, 3)
    color[..., 0] = (cameras.azimuth / 7)[:, None, None]
    one = torch.ones(len(cameras), height, width, 1)
    return Rendering(color=color, normal=color, depth=one, alpha=one, background=torch.zeros(len(cameras), 3))


def flat(value: int, size: int = 24) -> Tensor:
    return torch.full((size, size, 3), value, dtype=torch.uint8)


def test_film_has_every_frame_and_an_even_size(tmp_path):
    path = write_turntable(tmp_path / "turn.mp4", render_azimuth, frames=9, fps=10)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, check=True, capture_output=True)
    assert b"yuv420p" in decoded.stderr
    frames = np.frombuffer(decoded.stdout, np.uint8).reshape(9, 34, 48, 3)
    red = frames[..., 0].mean(axis=(1, 2))
    expected = 255 * np.arange(9) * 2 * np.pi / 9 / 7
    np.testing.assert_allclose(red, expected, atol=4)
    assert list(tmp_path.iterdir()) == [path]


def test_sheet_shows_the_views_in_order(tmp_path):
    path = write_sheet(tmp_path / "views.png", render_azimuth)
    with Image.open(path) as image:
        assert image.size == (3 * 47, 2 * 33)
        red = [image.getpixel((47 * (i % 3) + 5, 33 * (i // 3) + 5))[0] for i in range(6)]
    assert red == sorted(red)
    assert len(set(red)) == 6


def test_views_come_in_order_whatever_the_batch():
    from pgc3d.cameras import turntable

    red = [int(picture[0, 0, 0]) for picture in render_views(render_azimuth, turntable(7))]
    assert red == sorted(red)
    assert len(red) == 7


def test_tile_puts_pictures_in_reading_order():
    sheet = tile([flat(10), flat(20), flat(30)], columns=2)
    assert sheet.shape == (48, 48, 3)
    assert [int(sheet[r, c, 0]) for r, c in ((0, 0), (0, 30), (30, 0), (30, 30))] == [10, 20, 30, 255]


def test_labels_stand_under_the_pictures_and_never_widen_them():
    sheet = tile([flat(0, 64), flat(0, 64)], columns=2, labels=["a", "a very long prompt that does not fit"])
    assert sheet.shape[1] == 128
    assert sheet.shape[0] > 64
    strip = sheet[64:]
    assert (strip[:, :64] < 128).any()
    assert (strip[:, 64:] < 128).any()


def test_bad_sheets_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        tile([], 2)
    with pytest.raises(ValueError, match="one label"):
        tile([flat(0)], 2, ["a", "b"])
    with pytest.raises(ValueError, match="columns"):
        tile([flat(0)], 0)


def test_bytes_are_rounded_clamped_and_finite():
    image = torch.tensor([-1.0, 0.5, 2.0, float("nan")]).reshape(1, 2, 2)
    assert to_bytes(image).flatten().tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("write", [write_sheet, write_turntable])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, write):
    def fail(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        write(tmp_path / "out.mp4", render_azimuth)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_sheet, write_turntable])
def test_missing_folder_is_one_line(tmp_path, write):
    with pytest.raises(InputError, match="must be a folder that can be written"):
        write(tmp_path / "no" / "out.mp4", render_azimuth)
