"""Time the main job, prompt to GLB, in a fresh process, and print where the time goes.

python scripts/benchmark_run.py --repeats 2 [--mesh FILE] [options of `pgc3d text`, or of `pgc3d texture`]

The first step begins after `start` and `build`. Their parts, which do not add up to them, are printed below.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("start", "build", "render", "guidance", "backward", "optimizer", "preview", "checkpoint", "export")

PGC3D = (sys.executable, "-m", "pgc3d")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="a red chair")
    parser.add_argument("--mesh", help="texture this file")
    parser.add_argument("--repeats", type=int, default=1)
    arguments, options = parser.parse_known_args()
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "run"
            job = ["text"] if arguments.mesh is None else ["texture", arguments.mesh]
            command = [*PGC3D, *job, arguments.prompt, "--out", str(folder), *options]
            start = time.perf_counter()
            subprocess.run(command, check=True)
            total = time.perf_counter() - start
            manifest = json.loads((folder / "manifest.json").read_text())
        seconds = {part: manifest["seconds"].get(part, 0.0) for part in PARTS}
        steps = sum(stage["steps"] for stage in manifest["stages"].values())
        print(f"{'part':<12}{'seconds':>9}{'share':>8}{'ms a step':>11}   {manifest['device']['name']}")
        for part, value in seconds.items():
            print(f"{part:<12}{value:>9.1f}{value / total:>8.1%}{1000 * value / steps:>11.1f}")
        rest = total - sum(seconds.values())
        print(f"{'other':<12}{rest:>9.1f}{rest / total:>8.1%}   (end of the process)")
        print(f"{'total':<12}{total:>9.1f}{1:>8.0%}{1000 * total / steps:>11.1f}   {steps} steps")
        for part, value in manifest["start_parts"].items():
            print(f"  {part}: {value:.2f} s")
        memory = ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in manifest["peak_memory_bytes"].items())
        print(f"peak memory: {memory}")


if __name__ == "__main__":
    main()
