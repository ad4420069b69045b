"""Checks of the devices that the models of a run name, before it begins."""

from pgc3d.config import Config
from pgc3d.devices import AUTO, require_device
from pgc3d.errors import ConfigError
from pgc3d.requirements import Requirements


def model_devices(config: Config, needed: Requirements | None = None) -> dict[str, str]:
    """The devices other than the run's that models name, by the entry of `models`.

    Args:
        config: of the run.
        needed: of a part of the run; the requirements of all its stages when None.
    """
    used = (config.requires() if needed is None else needed).models
    named = {name: config.models[name].device for name in used}
    return {name: device for name, device in named.items() if device != AUTO}


def require_model_devices(config: Config, processes: int = 1) -> None:
    """Check that the devices of a run's models exist, and that the run has one process where there are some.

    Raises:
        BackendUnavailableError: this computer does not have one of them.
        ConfigError: several processes make the run.
    """
    require_one_process(config, processes)
    for name, device in model_devices(config).items():
        require_device(f"models.{name}.device", device)


def require_one_process(config: Config, processes: int) -> None:
    """Check that a run of several processes has no model on a device of its own.

    Raises:
        ConfigError: it has one.
    """
    if processes > 1:
        require_one_device(config, f"in a run of {processes} processes, which have a device each")


def require_one_device(config: Config, reason: str, needed: Requirements | None = None) -> None:
    """Check that no model has a device of its own.

    Raises:
        ConfigError: one has; the line has the reason, as "where an image itself is optimised".
    """
    for name, device in model_devices(config, needed).items():
        raise ConfigError(f"models.{name}.device must be auto {reason}, got {device}; remove it")
