"""Write a benchmark of simple solids with known shapes, for `pgc3d eval` without any data set.

    python scripts/make_procedural_benchmark.py OUT
    pgc3d eval OUT/items.jsonl FOLDER... --baseline hull

No download and no training is needed.
"""

import argparse
from pathlib import Path

import torch

from pgc3d.evaluation.procedural import write_procedural_set
from pgc3d.rendering import build_rasterizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(write_procedural_set(arguments.out, rasterizer=build_rasterizer("cpu", torch.device("cpu"))))


if __name__ == "__main__":
    main()
