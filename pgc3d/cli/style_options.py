"""The options of a style image."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgc3d.cli.options import RunOptions, not_empty
from pgc3d.errors import InputError

StyleOption = Annotated[
    Path | None,
    typer.Option(metavar="IMAGE", help="Image whose look the asset gets (SDXL, SD 1.5); its central square."),
]
StyleWeightOption = Annotated[
    float | None, typer.Option(metavar="WEIGHT", help="Weight of --style; 1 when not given, 0 is without it.")
]
StyleAdapterOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="IP-Adapter for --style: safetensors file, folder, OWNER/NAME[:FILE] of the hub; else h94's.",
        callback=not_empty,
    ),
]


def style_settings(
    options: RunOptions, style: Path | None, weight: float | None, adapter: str | None
) -> dict[str, Any]:
    """The settings of the text-to-image model, with those of `--style-weight` and `--style-adapter`.

    Raises:
        InputError: one of them is given without a style image.
    """
    for option, value in (("--style-weight", weight), ("--style-adapter", adapter)):
        if value is not None and style is None:
            raise InputError(f"{option} must go with --style IMAGE, got {value} and none; add it")
    shared = options.settings()["models"]["text"]
    return {"models": {"text": shared | {"style": {"adapter": adapter, "weight": weight}}}}
