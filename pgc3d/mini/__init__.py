"""The bundled models: miniatures of SDXL's, Zero123's and CLIP's layouts, trained on renders of free models.

`text/`, `image/`, `clip/` and `control/` are ordinary checkpoint folders, loaded by the same code as any
other; `image/` shares the VAE of `text/`, of which `control/` is a depth ControlNet. MODEL_CARD.md lists
their training data and their limits.
"""

from pathlib import Path

from pgc3d.errors import WeightsNotFoundError


def text_model() -> Path:
    """Folder of the text-to-image prior in diffusers' SDXL layout.

    Raises:
        WeightsNotFoundError: the installation lacks the weights.
    """
    return _folder("text", "model_index.json", "prior")


def image_model() -> tuple[Path, Path]:
    """Folder of the novel-view prior in Zero123's layout, and that of its VAE.

    Raises:
        WeightsNotFoundError: the installation lacks the weights.
    """
    instead = ", or use --guidance zero123, with --model for a folder in diffusers' layout"
    return _folder("image", "model_index.json", "image prior", instead), text_model() / "vae"


def clip_model() -> Path:
    """Folder of the contrastive model that compares results with texts, see `evaluation.retrieval`.

    Raises:
        WeightsNotFoundError: the installation lacks the weights.
    """
    return _folder("clip", "config.json", "CLIP model")


def control_model() -> Path:
    """Folder of the text-to-image prior's depth ControlNet.

    Raises:
        WeightsNotFoundError: the installation lacks the weights.
    """
    return _folder("control", "config.json", "depth ControlNet")


def _folder(name: str, index: str, what: str, instead: str = "") -> Path:
    """A folder of the package that must hold a file; what it is, and what else to do without it."""
    folder = Path(__file__).parent / name
    if not (folder / index).is_file():
        raise WeightsNotFoundError(
            f"the bundled {what} must lie in {folder}, got nothing; reinstall pgc3d{instead}"
        )
    return folder
