"""Common parts of the trainings: processes, averaged gradients, a moving average, a schedule over time."""

import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn


def start() -> tuple[int, int, torch.device]:
    """Join the other processes of `torchrun`, if any; returns (rank, world size, device)."""
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        set_fast_math(device)
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return rank, world, device


def end() -> None:
    """Wait for the other processes, if any, and leave them."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def set_fast_math(device: torch.device) -> None:
    """Work on this CUDA device from now on, in TF32 and with the fastest convolutions."""
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not torch.distributed.is_initialized():
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = torch.split(flat, [g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


class MovingAverage:
    """Exponential moving average of parameters.

    After n updates the decay is at most (1 + n) / (10 + n), so that the random start fades quickly.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.source = list(parameters)
        self.average = [p.detach().clone() for p in self.source]
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.source], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and parameters."""
        for p, a in zip(self.source, self.average, strict=True):
            held = p.detach().clone()
            p.copy_(a)
            a.copy_(held)


def update(loss: Tensor, optimizer: torch.optim.Optimizer, average: MovingAverage, lr: float) -> None:
    """One step of the optimiser along the gradient of all processes, clipped to norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    torch.autograd.backward(loss)
    average_gradients(average.source)
    torch.nn.utils.clip_grad_norm_(average.source, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.update()


class Budget:
    """Training time as the schedule: warm-up, then a cosine that ends when the minutes are used up.

    The clock is that of process 0, so all processes end at the same step. Earlier calls spent `used` seconds;
    the first three steps of a call, which compile and warm up, are free.
    """

    def __init__(self, minutes: float, device: torch.device, used: float = 0.0) -> None:
        self.seconds, self.used, self.device = minutes * 60, used, device
        self.step = 0

    @property
    def progress(self) -> float:
        """Fraction of the budget that is used."""
        return min(1.0, self.used / self.seconds)

    def steps(self, until: float = math.inf) -> Iterator[int]:
        """Count steps until the budget is used up, or this call has run for `until` seconds.

        All processes must iterate in step, since the clock of process 0 ends the loop of all.
        """
        begin = last = time.perf_counter()
        skip = 3  # compilation and warm-up do not count
        while self.progress < 1.0:
            yield self.step
            self.step += 1
            if self.step % 10 == 0 or skip:
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                now = time.perf_counter()
                state = torch.tensor([0.0 if skip else now - last, now - begin >= until], device=self.device)
                if torch.distributed.is_initialized():
                    torch.distributed.broadcast(state, 0)
                self.used += float(state[0])
                skip, last = max(0, skip - 1), now
                if state[1]:
                    return

    def learning_rate(self, peak: float, warmup_steps: int = 200, floor: float = 0.02) -> float:
        """Linear warm-up over steps, then a cosine over the budget."""
        cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return peak * min(1.0, (self.step + 1) / warmup_steps) * cosine


def save_state(
    path: Path, models: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage, budget: Budget
) -> None:
    """Write everything that a later call needs."""
    state = {"models": models.state_dict(), "average": average.average, "updates": average.updates,
             "optimizer": optimizer.state_dict(), "used": budget.used, "step": budget.step}  # fmt: skip
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_state(
    path: Path, models: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage, budget: Budget
) -> None:
    """Go on from what an earlier call wrote; without it nothing changes."""
    if not path.exists():
        return
    state = torch.load(path, map_location=budget.device, weights_only=True)
    models.load_state_dict(state["models"])
    torch._foreach_copy_(average.average, state["average"])
    average.updates = state["updates"]
    optimizer.load_state_dict(state["optimizer"])
    budget.used, budget.step = state["used"], state["step"]
