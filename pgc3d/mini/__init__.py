"""The bundled models: miniatures of SDXL's, Zero123's and CLIP's layouts, trained on renders of free models.

`text/`, `image/` and `judge/` are ordinary checkpoint folders, loaded by the same code as any other; `image/`
shares the VAE of `text/`. MODEL_CARD.md says what they were trained on, what they know and cannot do.
"""

from pathlib import Path

from pgc3d.errors import WeightsNotFoundError


def text_model() -> Path:
    """Folder of the text-to-image prior in diffusers' SDXL layout.

    Raises:
        WeightsNotFoundError: the installation lacks the weights.
    """
    folder = Path(__file__).parent / "text"
    if not (folder / "model_index.json").is_file():
        raise WeightsNotFoundError(f"the bundled prior must lie in {folder}, found nothing; reinstall pgc3d")
    return folder


def image_model() -> tuple[Path, Path]:
    """Folder of the novel-view prior in Zero123's layout, and that of its VAE.

    Raises:
        WeightsNotFoundError: the installation lacks the weights.
    """
    folder = Path(__file__).parent / "image"
    if not (folder / "model_index.json").is_file():
        raise WeightsNotFoundError(
            f"the bundled image prior must lie in {folder}, but this version comes without it; use "
            "--guidance zero123, with --model for a folder in diffusers' layout"
        )
    return folder, text_model() / "vae"


def judge() -> Path:
    """Folder of the contrastive model that tells what results show, see `evaluation.retrieval`.

    Raises:
        WeightsNotFoundError: the installation lacks the weights.
    """
    folder = Path(__file__).parent / "judge"
    if not (folder / "config.json").is_file():
        raise WeightsNotFoundError(f"the bundled judge must lie in {folder}, found nothing; reinstall pgc3d")
    return folder
