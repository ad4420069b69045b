"""The ranking of a sweep: how well the views of each seed fit the input, and each other.

With the unit embeddings e_1 .. e_V of V evenly spaced views (CLIP's image encoder), and the unit embedding r
of the prompt, or of the input image where there is no prompt:

    similarity   = mean over v of <e_v, r>
    consistency  = mean over v of <e_v, e_(v + 1)>, where view V + 1 is view 1
    score        = similarity + consistency

Both are cosines. An object with a second front differs more between neighbouring views than a plain one, but
one without any content is the most consistent: the similarity has to be in the sum.
"""

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d import pipeline
from pgc3d.batch.job import Ranked
from pgc3d.cameras import turntable
from pgc3d.evaluation.retrieval import Retriever
from pgc3d.inputs.image import load_prepared_image
from pgc3d.task import PREPARED_NAMES

VIEWS = 8


def rank_run(run: Path, seed: int, prompt: str, retriever: Retriever) -> Ranked:
    """Similarity and consistency of a run's newest checkpoint.

    Args:
        run: the run directory.
        seed: of the run.
        prompt: that the views are compared with; the run's prepared input image where it is empty.
        retriever: on the CPU.

    Raises:
        RunDirectoryError: the run has no valid checkpoint.
    """
    embedded = retriever.embed_images(pipeline.rendered_views(run, turntable(VIEWS)))
    if prompt:
        reference = retriever.embed_texts([prompt.lower()])[0]
    else:
        rgba = load_prepared_image(run / PREPARED_NAMES["image"])
        reference = retriever.embed_images((rgba[..., :3] + 1 - rgba[..., 3:])[None])[0]
    return measured(seed, embedded, reference)


def measured(seed: int, views: Float[Tensor, "V C"], reference: Float[Tensor, " C"]) -> Ranked:
    """The numbers of this module's formulas, from unit embeddings."""
    similarity = (views @ reference).mean().item()
    consistency = (views * torch.roll(views, -1, 0)).sum(-1).mean().item()
    return replace(
        Ranked(seed), similarity=similarity, consistency=consistency, score=similarity + consistency
    )


def best_first(ranked: list[Ranked]) -> tuple[Ranked, ...]:
    """Sorted by the score; seeds that failed are the last ones."""
    return tuple(sorted(ranked, key=lambda item: (bool(item.error), -item.score, item.seed)))
