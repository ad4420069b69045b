"""Settings of a run as a whole and of its models; cheap to import."""

import re
from dataclasses import dataclass, field
from typing import Literal

from pgc3d.choices import Backend, Precision
from pgc3d.ranges import PATH, check, number, shown
from pgc3d.view_prompts import ViewPromptConfig

DEVICE = re.compile(r"auto|cpu|cuda:\d{1,2}", re.ASCII)  # torch counts to 127
MAX_STEPS = 10_000_000
EARLY_PREVIEWS = (10, 30)  # steps


@dataclass(frozen=True)
class StyleConfig:
    """How a model uses the run's style image; without one it has no effect."""

    # A file, a folder, OWNER/NAME or OWNER/NAME:FILE of the hub; None: the authors' for the model's layout.
    adapter: str | None = field(default=None, metadata=PATH)
    weight: float = number(1.0, 0.0, 10.0)  # of the attention to the image

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ModelConfig:
    """A diffusion model; a guidance refers to it by its entry in `models`."""

    # "mini", an alias as "sdxl", a hub id, a folder in diffusers' layout, or one safetensors file
    name: str = field(default="mini", metadata=PATH)
    # Of a single file: the model whose configurations and tokenizers it uses; None: the one that such files
    # are made from.
    base: str | None = field(default=None, metadata=PATH)
    prediction: Literal["auto", "epsilon", "v_prediction"] = "auto"  # of the UNet; auto: from the checkpoint
    empty_prompt: Literal["text", "zeros"] = "text"  # how an empty negative prompt is encoded
    # FILE or OWNER/NAME[:FILE], each with or without :SCALE; safetensors
    loras: tuple[str, ...] = field(default=(), metadata=PATH)
    style: StyleConfig = field(default_factory=StyleConfig)  # for the run's style image, where it has one
    dtype: Precision = "auto"  # of the UNet and the text or image encoders
    vae: str | None = field(default=None, metadata=PATH)  # another VAE, as "sdxl-vae-fp16-fix"
    # auto: float32 on a CPU, else float16 where the VAE allows it, or bfloat16.
    vae_dtype: Precision = "auto"
    fast: Literal["auto", "never"] = "auto"  # auto: own encoder and compiled UNet on CUDA; else diffusers'
    view_prompts: ViewPromptConfig | None = None  # None: the model's own, else the usual four sectors
    pose: Literal["auto", "radius", "polar"] = "auto"  # of a Zero123: the 4th entry; auto: the checkpoint's
    # auto: the run's; else cuda:N or cpu, where the model computes its gradient while others compute theirs
    device: str = "auto"

    def __post_init__(self) -> None:
        check(self)
        if not self.name.strip():
            raise ValueError("name must be a model, got an empty text")
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"device must be auto, cpu or cuda:N, got {shown(self.device)}")


@dataclass(frozen=True)
class RunConfig:
    """Settings that all stages share."""

    seed: int = number(0, 0, 2**63 - 1)  # of all random numbers
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto is CUDA where there is one
    rasterizer: Backend = "auto"  # auto: triton on CUDA, cpu on a CPU
    # Views that a guidance evaluates at once, 0 for all; the same result in less memory.
    micro_batch: int = number(0, 0, 1024, unit="views")
    low_memory: bool = False  # one view at once, and activations are recomputed in the backward pass

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class LoggingConfig:
    """How often a run writes metrics, previews and checkpoints.

    A stage has previews after steps 10 and 30 too, where `preview_every` is larger, so that a run that goes
    wrong is seen early, and after its last step.
    """

    log_every: int = number(10, 1, MAX_STEPS, unit="steps")  # between two lines of metrics
    preview_every: int = number(100, 0, MAX_STEPS, unit="steps")  # between two previews; 0 means none
    checkpoint_every: int = number(200, 1, MAX_STEPS, unit="steps")  # between two checkpoints
    preview_resolution: int = number(256, 16, 2048, unit="pixels")  # side of a preview's views
    tensorboard: bool = False  # also write metrics and previews for TensorBoard

    def __post_init__(self) -> None:
        check(self)

    @property
    def early_previews(self) -> tuple[int, ...]:
        """The steps of a stage that have a preview before the first one that `preview_every` states."""
        return tuple(step for step in EARLY_PREVIEWS if step < self.preview_every)

    def has_preview(self, step: int, steps: int) -> bool:
        """Whether there is a preview after a step of a stage, by its number from 1 to `steps`."""
        due = self.preview_every and (step % self.preview_every == 0 or step == steps)
        return bool(due) or step in self.early_previews
