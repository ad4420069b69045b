"""The connection to a cluster of Ray: one that exists, or a new one on this machine."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pgc3d.batch.storage import INSTALL, one_line
from pgc3d.errors import BackendUnavailableError

AUTO, LOCAL = "auto", "local"  # the latter is Ray's word for a new one
REACH = 5.0  # seconds to wait for an answer from a head
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextmanager
def connected(address: str, notify: Callable[[str], None]) -> Iterator[Any]:
    """Yield Ray's module, connected to a cluster.

    Args:
        address: HOST:PORT of its head, or auto: the cluster that this machine is in, else a new one.
        notify: receives a line where that cluster is gone.

    Raises:
        BackendUnavailableError: Ray is not installed, or cannot be reached.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailableError(f"ray must be installed for --ray, got none; {INSTALL}") from error
    found = _own_cluster(notify) if address == AUTO else address
    if found != LOCAL:
        _require_reachable(found)
    try:
        ray.init(
            found,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        # Ray's lines about workers would go to stdout, among the paths of results; ours replace them.
        ray._private.worker._worker_logs_enabled = False
    except Exception as error:
        raise BackendUnavailableError(
            f"a cluster of Ray must be reachable at {found}, got: {one_line(error)}; see `ray status`, and "
            "set RAY_AUTH_MODE=token where it has tokens"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _own_cluster(notify: Callable[[str], None]) -> str:
    """The address of the cluster that this machine is in, or that a new one is to be started."""
    from ray._private.utils import read_ray_address

    given = os.environ.get("RAY_ADDRESS", "")
    if given not in {"", AUTO}:
        return given
    known = read_ray_address() or ""  # of the last one that was started here, also where that was killed
    if known and not _is_reachable(known):
        notify(f"the cluster of Ray that was started here is gone, it was {known}: a new one is started")
        return LOCAL
    return known or LOCAL


def _require_reachable(address: str) -> None:
    """Check that something listens at HOST:PORT; Ray itself tries for a quarter of an hour.

    Raises:
        BackendUnavailableError: nothing does.
    """
    if not _is_reachable(address):
        raise BackendUnavailableError(
            f"a cluster of Ray must be reachable at HOST:PORT, got {address}, where nothing answers; start "
            "it, or use --ray auto"
        )


def _is_reachable(address: str) -> bool:
    """Whether something listens; addresses of other forms are left to Ray."""
    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isdecimal():
        return "//" in address
    try:
        with socket.create_connection((host, int(port)), timeout=REACH):
            return True
    except (OSError, OverflowError):
        return False
