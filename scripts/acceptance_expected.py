"""What an acceptance test expects: one table of numbers with their ranges and reasons, and the verdicts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

Verdict = Literal["pass", "fail", "not run"]
# What a trial may be, and the reason for which an expectation does not apply where it is not.
TAGS = {
    "trained": "the weights are random",
    "real": "the weights are not those of the full-size models",
    "full size": "the models do not have their full size",
    "all steps": "the steps were reduced",
    "stated device": "the tables are of H100 and H200, this is another device",
}
UNBOUNDED = math.inf
TIME, MEMORY = 0.35, 0.25  # relative tolerances of times and of memory
GIB = 2**30 / 1e9
OBJECT = ("text-*", "texture-*", "sync-*", "refine-*", "clip-*", "image-*")
MESH = ("texture-*", "sync-*", "refine-*", "clip-*")


@dataclass(frozen=True)
class Expectation:
    """The range that a number of some parts must lie in."""

    parts: tuple[str, ...]  # patterns of their names
    number: str
    low: float
    high: float
    why: str
    needs: tuple[str, ...] = ()  # of `TAGS`
    needed: bool = True  # whether the program is wrong outside the range; else it is a finding


@dataclass(frozen=True)
class Check:
    """The verdict on one number of one part."""

    part: str
    number: str
    value: float | None
    low: float
    high: float
    verdict: Verdict
    reason: str
    needed: bool


def _time(part: str, milliseconds: float, source: str, *, number: str = "step_ms") -> Expectation:
    low, high = milliseconds * (1 - TIME), milliseconds * (1 + TIME)
    needs = ("full size", "stated device")
    return Expectation((part,), number, low, high, f"{milliseconds:g} ms: {source}", needs, needed=False)


def _memory(part: str, gigabytes: float, source: str, *, number: str = "peak_gb") -> Expectation:
    low, high = gigabytes * (1 - MEMORY), gigabytes * (1 + MEMORY)
    needs = ("full size", "stated device")
    return Expectation((part,), number, low, high, f"{gigabytes:.1f} GB: {source}", needs, needed=False)


STEP_TABLE = "the table of a guidance step, random weights, H100"
MESH_TABLE = "SDXL on a mesh, random weights, H100"
REFINE_TABLE = "refining, random weights, H200"
PIPELINE_TABLE = "pipelines at full size, random weights, H200"

EXPECTATIONS: tuple[Expectation, ...] = (
    # the program
    Expectation(("machine",), "broken", 0, 0, "pgc3d doctor finds nothing broken", needed=False),
    Expectation((*OBJECT, "gradients-*", "step-*"), "finite", 1, 1, "all logged numbers are finite"),
    Expectation(OBJECT, "skipped_steps", 0, 0, "no step had a gradient that is not finite"),
    Expectation(OBJECT, "export_psnr", 28.0, 99.0, "the export, read back and rendered again"),
    Expectation(OBJECT, "coverage_least", 0.01, 0.95, "each of the six views shows an object"),
    Expectation(OBJECT, "coverage_most", 0.01, 0.95, "each of the six views shows an object"),
    Expectation(MESH, "silhouette_iou", 0.99, 1.0, "texturing changes no geometry"),
    Expectation(("clip-none",), "changed_fraction", 0, 0, "without clipping no finite pixel changes"),
    Expectation(
        OBJECT, "nonfinite_fraction", 0, 1e-5,
        "half precision overflows in next to no pixel: 1.8e-7 with random weights of SDXL", needed=False,
    ),
    Expectation(
        ("clip-pngd",), "clipped_fraction", 0.9, 1.0,
        "PNGD shortens every pixel that has a gradient: 1.00 with the bundled prior",
    ),
    # quality
    Expectation(
        ("image-*",), "input_psnr", 13.9, UNBOUNDED,
        "without any prior even the other views have 13.9 dB on the average of 34 objects",
        ("trained", "all steps"), needed=False,
    ),
    Expectation(
        ("image-*",), "mask_iou", 0.5, 1.0, "0.70 with the bundled prior over 34 objects",
        ("trained", "all steps"), needed=False,
    ),
    Expectation(
        ("text-*", *MESH), "similarity_gain", 0.0, UNBOUNDED,
        "nearer to the prompt than the same shape in grey, by the bundled contrastive model",
        ("trained", "all steps"), needed=False,
    ),
    Expectation(
        ("text-*", "texture-*", "sync-*"), "r_precision", 1 / 6, 1.0,
        "at least one of six views; chance is 0.01, the bundled prior has 0.82 over twenty prompts",
        ("trained", "all steps"), needed=False,
    ),
    # clipping
    Expectation(
        ("clip-pixel",), "clipped_fraction", 0.3, 0.99,
        "0.44 with the bundled prior, 0.86 with random weights of SDXL at 1024 px", ("trained",),
        needed=False,
    ),
    Expectation(
        ("clip-pixel",), "speckle_over_none", 0.0, 1.0,
        "the paper's claim: clipping makes the texture less noisy", ("real", "all steps"), needed=False,
    ),
    # the encoder's gradient
    Expectation(
        ("gradients-sdxl", "gradients-sd"), "residual_beyond_1", 0, 0,
        "the paper's assumption: what a sampler changes in a step is at most 1", ("trained",), needed=False,
    ),
    Expectation(
        ("gradients-sdxl",), "finished_p99_over_p50", 15.0, UNBOUNDED,
        "heavier than the bundled prior's 15", ("real",), needed=False,
    ),
    Expectation(
        ("gradients-sdxl",), "finished_max_over_p99", 6.0, UNBOUNDED,
        "heavier than the bundled prior's 5.8; 50 with random weights at 1024 px", ("real",), needed=False,
    ),
    Expectation(
        ("gradients-*",), "encoder_hill", 0.0, 6.0,
        "a heavy tail, that PGC is made for; the largest of three normal numbers has 11", ("real",),
        needed=False,
    ),
    # the fast code against diffusers' in float32
    Expectation(
        ("step-*",), "cosine_gradient", 0.99, 1.0,
        "0.999997 with random weights in float16; SDXL's own VAE runs in bfloat16", ("trained",),
    ),
    Expectation(("step-*",), "cosine_prediction", 0.99, 1.0, "the noise that diffusers predicts in float32"),
    # time and memory
    _time("step-sdxl", 58.9, STEP_TABLE, number="step_ms_1"),
    _time("step-sdxl", 113.2, STEP_TABLE, number="step_ms_2"),
    _time("step-sd", 18.4, STEP_TABLE, number="step_ms_1"),
    _time("step-sd", 44.2, STEP_TABLE, number="step_ms_4"),
    _memory("step-sdxl", 8.4 * GIB, STEP_TABLE, number="gb_1"),
    _memory("step-sdxl", 10.3 * GIB, STEP_TABLE, number="gb_2"),
    _memory("step-sd", 2.4 * GIB, STEP_TABLE, number="gb_1"),
    _memory("step-sd", 4.6 * GIB, STEP_TABLE, number="gb_4"),
    _time("text-sdxl", 118.1, f"113.2 of {STEP_TABLE} and 4.9 of the rest"),
    _time("texture-sdxl", 251.3, f"242 and 9.3 of {MESH_TABLE}"),
    _time("texture-sdxl-depth", 298.1, f"twice 144.4 of {STEP_TABLE} and 9.3 of the rest"),
    _time("refine-sdxl", 330, REFINE_TABLE),
    _time("text-sd", 60, f"`dmtet` of {PIPELINE_TABLE}"),
    _time("texture-sd", 53.5, f"44.2 of {STEP_TABLE} and 9.3 of the rest"),
    _time("texture-sd-depth", 62.2, f"52.9 of {STEP_TABLE} and 9.3 of the rest"),
    _time("image-*", 63, f"`dmtet` of an image of {PIPELINE_TABLE}"),
    _memory("texture-sdxl", 16.0, MESH_TABLE),
    _memory("texture-sdxl-depth", 19.2, MESH_TABLE),
    _memory("refine-sdxl", 15.7, REFINE_TABLE),
    _memory("image-*", 3.4, "`pgc3d image --guidance zero123`, random weights, H100"),
)  # fmt: skip


def check_part(
    name: str,
    numbers: Mapping[str, float | None],
    tags: Collection[str],
    table: Sequence[Expectation] = EXPECTATIONS,
) -> list[Check]:
    """The verdicts on the numbers of one part.

    A number that is missing, or that is not finite, fails where it is expected.

    Args:
        name: of the part.
        numbers: its numbers; None for one that is not finite.
        tags: of `TAGS`, what the trial is.
        table: the expectations.
    """
    return [
        _check(name, expected, numbers, tags)
        for expected in table
        if any(fnmatch(name, pattern) for pattern in expected.parts)
    ]


def _check(
    name: str, expected: Expectation, numbers: Mapping[str, float | None], tags: Collection[str]
) -> Check:
    value = numbers.get(expected.number)
    lacking = [TAGS[tag] for tag in expected.needs if tag not in tags]
    verdict: Verdict
    if lacking:
        verdict, reason = "not run", "; ".join(lacking)
    elif value is None or not math.isfinite(value):
        found = "not finite" if expected.number in numbers else "missing"
        verdict, reason = "fail", f"the number is {found}; {expected.why}"
    else:
        inside = expected.low <= value <= expected.high
        verdict, reason = "pass" if inside else "fail", expected.why
    return Check(name, expected.number, value, expected.low, expected.high, verdict, reason, expected.needed)


def verdict_of(state: str, checks: Sequence[Check]) -> Verdict:
    """The verdict on a part: it fails where it ended with an error, or a needed number is out of its range.

    Args:
        state: "done", "error" or "not run".
        checks: of its numbers.
    """
    if state == "not run":
        return "not run"
    broken = any(check.verdict == "fail" and check.needed for check in checks)
    return "fail" if state == "error" or broken else "pass"


def derived(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The numbers of each part, and of the clipping rules also their speckle over that without clipping."""
    numbers = {name: dict(result.get("numbers", {})) for name, result in results.items()}
    base = numbers.get("clip-none", {}).get("speckle")
    for name, own in numbers.items():
        speckle = own.get("speckle")
        if name.startswith("clip-") and base and speckle is not None:
            own["speckle_over_none"] = speckle / base
    return numbers


def tags_of(*, kind: str, random: bool, steps_scale: float, device: str) -> set[str]:
    """What a trial is, of `TAGS`.

    Args:
        kind: of its weights.
        random: whether they are random.
        steps_scale: factor of all steps.
        device: name of the device.
    """
    full_size = kind in {"folder", "hub"}
    facts = {
        "full size": full_size,
        "trained": kind != "tiny" and not random,
        "real": full_size and not random,
        "all steps": steps_scale >= 1.0,
        "stated device": any(name in device for name in ("H100", "H200")),
    }
    return {tag for tag, holds in facts.items() if holds}
