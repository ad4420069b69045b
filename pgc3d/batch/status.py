"""The status file of a batch, OUT/status.json, and the lock of its folder.

The file is replaced with each change of a job's state, so that after a kill at any time it holds the last
one: a job whose state is `running` is resumed from its folder.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgc3d import __version__
from pgc3d.batch.job import Entry, Ranked, State
from pgc3d.disk import writing
from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import open_in_place, remove_temporaries
from pgc3d.records import fields, list_of, mapping_of, maybe, number, parse, text, whole

FORMAT = 1
LOCK = ".lock"
STATES: tuple[State, ...] = ("waiting", "running", "done", "failed")
RANKED = fields(
    {"seed": whole(0, 2**63 - 1)},
    {"similarity": number, "consistency": number, "score": number, "error": text},
)
CHECK = fields(
    {
        "format": whole(1, FORMAT),
        "jobs": list_of(
            fields(
                {"name": text, "digest": text, "state": text},
                {
                    "reason": text,
                    "folder": text,
                    "asset": text,
                    "seed": maybe(whole(0, 2**63 - 1)),
                    "seconds": number,
                    "peak_memory_bytes": mapping_of(whole(0)),
                    "ranking": list_of(RANKED),
                },
            )
        ),
    }
)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder of a batch, and keep other processes from running a batch in it.

    Raises:
        RunDirectoryError: one does already, or the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_in_place(folder, LOCK, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{folder} must not be in use, but another batch is writing it; wait for it or stop it"
            ) from error
        with writing(folder):
            remove_temporaries(folder)
        yield
    finally:
        os.close(descriptor)  # releases the lock, as the end of the process does


def parse_status(content: bytes, place: str) -> dict[str, Entry]:
    """The records of the jobs by name.

    Args:
        content: of a status file.
        place: of that file, for the message.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    try:
        record = parse(content)
        CHECK(record, "it")
        entries = [_entry(job) for job in record["jobs"]]
    except (ValueError, TypeError) as error:
        raise RunDirectoryError(
            f"{place} must be the status file of a batch, but is damaged: {error}; choose another --out"
        ) from error
    return {entry.name: entry for entry in entries}


def status_bytes(entries: Mapping[str, Entry], unlisted: Mapping[str, Entry] | None = None) -> bytes:
    """The content of a status file.

    Args:
        entries: of the jobs of the list.
        unlisted: of jobs that were on the list earlier; not counted.
    """
    counts = Counter(entry.state for entry in entries.values())
    head = {"format": FORMAT, "pgc3d": __version__, "counts": {state: counts[state] for state in STATES}}
    jobs = [json.dumps(_record(entry)) for entry in [*entries.values(), *(unlisted or {}).values()]]
    text = json.dumps(head, indent=1).removesuffix("\n}")
    return (text + ',\n "jobs": [\n  ' + ",\n  ".join(jobs) + "\n ]\n}\n").encode()


def _record(entry: Entry) -> dict[str, Any]:
    """A job's line; `asdict` takes most of the time of a batch of ten thousand."""
    return {**vars(entry), "ranking": [vars(ranked) for ranked in entry.ranking]}


def _entry(job: Mapping[str, Any]) -> Entry:
    if job["state"] not in STATES:
        raise ValueError(f"a state must be one of {', '.join(STATES)}, got {job['state']}")
    return Entry(**{**job, "ranking": tuple(Ranked(**ranked) for ranked in job.get("ranking", ()))})
