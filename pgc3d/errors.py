"""Errors that a user can cause, each one line: what must hold, what was found, what to do.

    X must ..., got VALUE; DO THIS        X must ..., but WHAT HAPPENED; DO THIS

Pgc3dError
├── ConfigError              a wrong option, key or value                      exit 2
├── InputError               a prompt, image, mesh or folder that is unusable   exit 2
├── RunDirectoryError        a run directory that exists, is locked or damaged  exit 2
├── BackendUnavailableError  a device or rasteriser that is not available       exit 2
├── WeightsNotFoundError     model weights that are missing or broken           exit 3
├── OutOfMemoryError         the job does not fit the device                    exit 4
├── DivergedError            the optimisation or the export failed a check      exit 5
└── ProcessError             another process of the run failed or ended         exit 6, or its own
"""


class Pgc3dError(Exception):
    """Base of every error that is reported as one line instead of a traceback."""

    exit_code = 2


class ConfigError(Pgc3dError):
    """A configuration key or value is wrong."""


class InputError(Pgc3dError):
    """A prompt, image, mesh or path given by the user cannot be used."""


class RunDirectoryError(Pgc3dError):
    """A run directory exists already, is in use, or is damaged."""


class BackendUnavailableError(Pgc3dError):
    """A requested device, rasteriser or library is not available."""


class WeightsNotFoundError(Pgc3dError):
    """Model weights are missing, incomplete, or not of the pinned commit."""

    exit_code = 3


class OutOfMemoryError(Pgc3dError):
    """The job does not fit into the memory of the device."""

    exit_code = 4


class DivergedError(Pgc3dError):
    """The optimisation became non-finite or lost its surface, or the result failed a check."""

    exit_code = 5


class ProcessError(Pgc3dError):
    """Another one of the processes that make a run together failed or ended."""

    exit_code = 6

    def __init__(self, message: str, *, exit_code: int = exit_code, is_lost: bool = False) -> None:
        """Store the line, the exit code of the other process's error, and whether that process is gone."""
        super().__init__(message)
        self.exit_code, self.is_lost = exit_code, is_lost
