"""Optional packages that read or write some formats."""

import importlib
from typing import Any

from pgc3d.errors import InputError


def require_package(module: str, extra: str, what: str) -> Any:
    """An optional module.

    Args:
        module: its name.
        extra: of pgc3d that installs it.
        what: needs it, for the message.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{what} must have the package of pgc3d[{extra}], got none; pip install 'pgc3d[{extra}]', or "
            "convert the mesh to GLB"
        ) from error
