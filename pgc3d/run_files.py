"""The names in a run's folder, and the check that a folder is one; cheap to import."""

from pathlib import Path

from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import require_file, require_folder

CONFIG, MANIFEST, METRICS, LOCK = "config.yaml", "manifest.json", "metrics.jsonl", ".lock"
PREVIEWS, CHECKPOINTS = FOLDERS = ("previews", "checkpoints")


def require_folder_of_run(path: Path) -> None:
    """Check that there is a folder at all, which takes no time.

    Raises:
        RunDirectoryError: there is none.
    """
    if not path.is_dir():
        require_run(path)


def require_run(path: Path) -> None:
    """Check that a folder has the files of a run; what is in them is not read.

    Raises:
        RunDirectoryError: one is missing, or is a link.
    """
    for name, require in {CONFIG: require_file, MANIFEST: require_file, CHECKPOINTS: require_folder}.items():
        try:
            require(path / name)
        except OSError as error:
            raise RunDirectoryError(
                f"{path} must be the folder of a run, but {path / name} is missing; give the folder that "
                "`pgc3d text` wrote"
            ) from error
