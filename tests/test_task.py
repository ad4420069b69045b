import json
from pathlib import Path

import pytest

from pgc3d.task import Task


@pytest.mark.parametrize(
    "task",
    [
        Task("a red chair"),
        Task(image=Path("first/input.png")),
        Task("a knight", mesh=Path("first/mesh/input.glb"), background=Path("first/background.png")),
        Task(),
    ],
    ids=["text", "image", "texture", "nothing"],
)
def test_a_manifest_gives_the_task_back_wherever_the_run_lies(task):
    record = json.loads(json.dumps(task.record(Path("first"))))
    assert Task.from_record(record, Path("first")) == task
    moved = Task.from_record(record, Path("second"))
    assert moved.record(Path("second")) == record
