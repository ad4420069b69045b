"""A turntable video of the object and a sheet of views."""

import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pgc3d.cameras import turntable
from pgc3d.disk import atomic_path, write_files
from pgc3d.errors import InputError
from pgc3d.images import encode_png, to_bytes
from pgc3d.types import Cameras, Rendering

VIEWS_AT_ONCE = 4  # bounds the memory of the renderer


@torch.no_grad()
def render_views(
    render: Callable[[Cameras], Rendering], cameras: Cameras
) -> Iterator[UInt8[Tensor, "H W 3"]]:
    """Images of all cameras, one at a time, on the CPU."""
    for start in range(0, len(cameras), VIEWS_AT_ONCE):
        yield from to_bytes(render(cameras[start : start + VIEWS_AT_ONCE]).color)


def tile(
    images: Sequence[UInt8[Tensor, "H W 3"]], columns: int, labels: Sequence[str] = ()
) -> UInt8[Tensor, "H2 W2 3"]:
    """A grid of images of one size, row by row, white in empty cells, with optional labels below the images.

    Raises:
        ValueError: there is no image, labels and images differ in number, or `columns` is not positive.
    """
    if not images:
        raise ValueError("a sheet must have at least one image, got none")
    if labels and len(labels) != len(images):
        raise ValueError(f"every image must have one label, got {len(labels)} for {len(images)} images")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    cells = list(images)
    if labels:
        strips = [_label(text, images[0].shape[1]) for text in labels]
        cells = [torch.cat(pair) for pair in zip(images, strips, strict=True)]
    blank = torch.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % columns)
    rows = [torch.cat(cells[start : start + columns], dim=1) for start in range(0, len(cells), columns)]
    return torch.cat(rows)


def _label(text: str, width: int) -> Tensor:
    """A strip of black text on white, truncated with an ellipsis where it is too wide."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(10, min(16, width // 14))
    font = ImageFont.load_default(size)
    while len(text) > 1 and font.getlength(text) > width - 4:
        text = text.removesuffix("…")[:-1] + "…"
    strip = Image.new("RGB", (width, size * 3 // 2), "white")
    ImageDraw.Draw(strip).text((2, 1), text, fill="black", font=font)
    return torch.from_numpy(np.array(strip))


def write_sheet(
    path: Path, render: Callable[[Cameras], Rendering], *, views: int = 6, columns: int = 3
) -> Path:
    """Write a PNG of evenly spaced views, the front first.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    images = list(render_views(render, turntable(views)))
    write_files({path: encode_png(tile(images, columns))})
    return path


def write_turntable(
    path: Path,
    render: Callable[[Cameras], Rendering],
    *,
    frames: int = 72,
    fps: int = 24,
    elevation_degrees: float = 15.0,
) -> Path:
    """Write an MP4 (H.264, 4:2:0) of one revolution that starts at the front and loops seamlessly.

    Raises:
        InputError: the folder cannot be written, the disk is full or the encoder fails.
    """
    images = render_views(render, turntable(frames, elevation_degrees=elevation_degrees))
    write_video(path, images, fps=fps)
    return path


def write_video(path: Path, images: Iterator[UInt8[Tensor, "H W 3"]], *, fps: int) -> None:
    """Encode images of one size; odd sizes are padded by a repeated row or column for 4:2:0.

    Raises:
        InputError: the folder cannot be written, the disk is full or the encoder fails.
    """
    first = _even(next(images))
    height, width = first.shape[:2]
    with atomic_path(path) as temporary:
        command = _ffmpeg_command(temporary, width=width, height=height, fps=fps)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as encoder:
            assert encoder.stdin is not None
            assert encoder.stderr is not None
            try:
                encoder.stdin.write(first.numpy().tobytes())
                for image in images:
                    encoder.stdin.write(_even(image).numpy().tobytes())
                encoder.stdin.close()
            except BrokenPipeError:
                pass  # the encoder stopped; the reason is in its message
            message = encoder.stderr.read().decode(errors="replace").strip().replace("\n", "; ")
        if encoder.returncode != 0:
            raise InputError(
                f"ffmpeg must be able to write {path}, got: {message}; free some space and retry"
            )


def _ffmpeg_command(path: Path, *, width: int, height: int, fps: int) -> list[str]:
    import imageio_ffmpeg

    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    codec = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4"]
    # Without these tags players guess the colour matrix from the size, and colours shift.
    color = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"]
    color += ["-color_primaries", "bt709", "-color_trc", "iec61966-2-1", "-color_range", "tv"]
    executable = imageio_ffmpeg.get_ffmpeg_exe()
    return [executable, "-y", "-nostdin", "-loglevel", "error", *source, *codec, *color, str(path)]


def _even(image: Tensor) -> Tensor:
    height, width = image.shape[:2]
    rows = torch.arange(2 * math.ceil(height / 2)).clamp(max=height - 1)
    columns = torch.arange(2 * math.ceil(width / 2)).clamp(max=width - 1)
    return image[rows][:, columns]
