"""The bundled prior: a miniature of SDXL's layout, trained on renders of freely licensed models.

`text/` is an ordinary checkpoint folder, loaded by the same code as any other; MODEL_CARD.md says what it was
trained on, what it knows and what it cannot do.
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
