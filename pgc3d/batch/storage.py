"""Object storage behind a URL, as s3://bucket/prefix, by fsspec: its client for each protocol is a package.

Credentials, regions and endpoints are those of the client, from its environment variables and files, on every
machine. An object appears under its name only when it is complete; nothing lists what another process may be
writing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgc3d.errors import BackendUnavailableError, RunDirectoryError

INSTALL = 'pip install "pgc3d[cluster]"'


@dataclass(frozen=True)
class Storage:
    """The objects below a URL; a client is made where it is used, so that this can be sent to other machines.

    All methods raise RunDirectoryError where the storage cannot be reached, read or written, and
    BackendUnavailableError where the package for the protocol is missing.
    """

    url: str  # without a slash at its end

    def read(self, name: str) -> bytes | None:
        """The content of an object, None where there is none."""
        with self._client(name) as (client, root):
            try:
                return bytes(client.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Replace an object."""
        with self._client(name) as (client, root):
            client.pipe_file(f"{root}/{name}", content)

    def upload(self, files: Mapping[str, Path]) -> None:
        """Replace objects by files, several at a time; their order is not defined."""
        with self._client(next(iter(files), "")) as (client, root):
            client.put([str(path) for path in files.values()], [f"{root}/{name}" for name in files])

    def download(self, name: str, path: Path) -> bool:
        """Write an object to a file; returns whether there is one."""
        with self._client(name) as (client, root):
            try:
                client.get_file(f"{root}/{name}", str(path))
            except FileNotFoundError:
                return False
        return True

    def copy(self, names: Mapping[str, str]) -> None:
        """Copy objects within the storage, each to the name that it has in `names`."""
        with self._client(next(iter(names), "")) as (client, root):
            sources, targets = ([f"{root}/{name}" for name in side] for side in (names, names.values()))
            client.copy(sources, targets)

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects that exist."""
        with self._client(next(iter(names), "")) as (client, root):
            client.rm([f"{root}/{name}" for name in names])

    def exists(self, name: str) -> bool:
        """Whether there is an object, or one below the name."""
        with self._client(name) as (client, root):
            return bool(client.exists(f"{root}/{name}"))

    def names(self, prefix: str = "") -> set[str]:
        """The names one level below a prefix, of objects and of prefixes."""
        with self._client(prefix) as (client, root):
            try:
                found = client.ls(f"{root}/{prefix}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return set()
        return {path.rstrip("/").rpartition("/")[2] for path in found}

    def all_names(self, prefix: str) -> list[str]:
        """The names of all objects below a prefix, from the storage's root."""
        with self._client(prefix) as (client, root):
            return [path.removeprefix(f"{root}/") for path in client.find(f"{root}/{prefix}")]

    @contextmanager
    def _client(self, name: str) -> Iterator[tuple[Any, str]]:
        """The client and the storage's root in its words; errors of any library become one line."""
        client, root = self._connect()
        try:
            yield client, root
        except Exception as error:  # each client has errors of its own
            place = f"{self.url}/{name}".rstrip("/")
            raise RunDirectoryError(
                f"{place} must be storage that can be reached and written, got: {one_line(error)}"
            ) from error

    def _connect(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            client, root = url_to_fs(self.url, use_listings_cache=False)
        except Exception as error:
            raise BackendUnavailableError(
                f"{self.url} must be a URL that fsspec has a client for, got: {one_line(error)}; {INSTALL}, "
                "or the package of another protocol"
            ) from error
        return client, root.rstrip("/")


def one_line(error: BaseException) -> str:
    """The kind of an error and the begin of its text."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
