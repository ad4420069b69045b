"""Metrics and previews of a run as event files of TensorBoard, in RUN/tensorboard/STAGE.

Each stage is a run of TensorBoard with its own steps. A run that continues writes a further file, whose head
hides what earlier files have of the steps that are made again.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgc3d.disk import writing
from pgc3d.errors import BackendUnavailableError
from pgc3d.events import Event, EventCallback
from pgc3d.plain_files import read_file, require_folder

FOLDER = "tensorboard"
IMAGES = ("preview", "clipping")  # kinds of files, and tags of the images


def require_tensorboard() -> None:
    """Check that the package is there.

    Raises:
        BackendUnavailableError: it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise BackendUnavailableError(
            "--tensorboard must have the package tensorboard, got none; pip install 'pgc3d[tensorboard]', or "
            "set logging.tensorboard=false"
        )


@contextmanager
def written_to_tensorboard(run: Path, on_event: EventCallback) -> Iterator[EventCallback]:
    """An event callback that writes metrics and previews, and then calls another one.

    Args:
        run: the run's folder.
        on_event: the other one.

    Raises:
        BackendUnavailableError: the package tensorboard is missing.
    """
    require_tensorboard()
    writers: dict[str, Any] = {}

    def write(event: Event) -> None:
        if event.stage not in writers and event.report is not None:
            for writer in writers.values():
                writer.close()
            writers[event.stage] = _open(run, event.stage, event.report.step)
        if event.report is not None and event.report.metrics is not None:
            for name, value in event.report.metrics.items():
                writers[event.stage].add_scalar(name, value, event.report.step)
        elif event.kind in IMAGES and event.file is not None:
            _add_image(writers[event.stage], event.kind, Path(event.file))
        on_event(event)

    try:
        yield write
    finally:
        for writer in writers.values():
            writer.close()


def _open(run: Path, stage: str, step: int) -> Any:
    """A writer of a stage, which hides all of its steps from `step` on in earlier files."""
    from torch.utils.tensorboard.writer import SummaryWriter

    folder = run / FOLDER / stage
    with writing(folder):
        for part in (run / FOLDER, folder):
            if not os.path.lexists(part):
                part.mkdir()
            require_folder(part)
    return SummaryWriter(str(folder), purge_step=step)


def _add_image(writer: Any, tag: str, path: Path) -> None:
    import io

    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(read_file(path)), formats=("PNG",)) as image:
        pixels = np.asarray(image.convert("RGB"))
    writer.add_image(tag, pixels, int(path.stem.rpartition("-")[2]), dataformats="HWC")
