"""New members of the families, as a user could write them."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from tiny import write_tiny_controlnet, write_tiny_sd, write_tiny_sdxl

from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_stage
from pgc3d.cameras import fill_distance, orbit
from pgc3d.config import Config, LoggingConfig, ModelConfig, ObjectiveConfig, StageConfig
from pgc3d.diffusion.latent import select
from pgc3d.guidance.distillation import distill, draw
from pgc3d.guidance.score import classifier_free_guidance
from pgc3d.parameters import ParameterGroup, ParameterStore
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.dmtet_config import DMTetConfig
from pgc3d.requirements import ModelUse, Requirements
from pgc3d.run_directory import RunDirectory
from pgc3d.schedules import add_noise
from pgc3d.session import Session
from pgc3d.signals import StopFlag
from pgc3d.task import Task
from pgc3d.types import GuidanceOutput, Handover, Material, Rendering

CPU = torch.device("cpu")
STEPS = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("seams")
    sd = write_tiny_sd(root / "sd")
    net = write_tiny_controlnet(root / "net", sd)
    return SimpleNamespace(sd=sd, sdxl=write_tiny_sdxl(root / "sdxl"), net=net)


# A guidance that trains a network beside the frozen model, as variational score distillation does.


@dataclass(frozen=True)
class AdaptedConfig:
    kind: str = "adapted"
    model: str = "text"
    lr: float = 1e-2
    fails_at: int = -1  # a step that runs out of memory after the network was trained

    def requires(self):
        return Requirements(prompt=True, models={self.model: self._use()})

    def _use(self):
        return ModelUse(trains=True)

    def input_resolution(self, rendered, model):
        return model

    def build(self, context):
        text = context.models.embed(self.model, (context.prompt, ""))
        model = context.models.get(self.model, self._use()).diffusion
        return Adapted(model, text, self.lr, context.generator, self.fails_at)


class Adapted:
    def __init__(self, model, text, lr, generator, fails_at):
        self.model, self.text, self.fails_at, self.micro_batch = model, text, fails_at, 0
        self.adapter = torch.nn.Conv2d(4, 4, 3, padding=1)
        with torch.no_grad():
            for parameter in self.adapter.parameters():
                parameter.normal_(0.0, 0.1, generator=generator)
        self.optimizer = torch.optim.Adam(self.adapter.parameters(), lr=lr)
        for parameter in self.adapter.parameters():  # Adam makes its state in the first step
            zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros(()), **zeros}

    def input_resolution(self, rendered):
        return self.model.resolution

    def __call__(self, image, rendering, views, step):
        sample = draw(self.model, len(image), image.shape[1], (0.02, 0.98), step)
        texts = [select(self.text, torch.full((len(image),), row)) for row in (0, 1)]

        def score_of(latents):
            noisy = add_noise(latents, sample.noise, self.model.alphas_cumprod[sample.timesteps])
            time_ids = self.model.time_ids(image.shape[1], image.shape[1])
            plain, shown = self.model.predict(
                noisy, sample.timesteps, conditional=texts[0], unconditional=texts[1], time_ids=time_ids
            )
            own = shown + self.adapter(noisy)
            self.optimizer.zero_grad()
            (own - sample.noise).square().mean().backward()
            self.optimizer.step()
            return classifier_free_guidance(plain, shown, 7.5) - own.detach()

        output = distill(self.model, image, sample, score_of)
        if step.index == self.fails_at:
            self.fails_at = -1
            raise MemoryError
        return GuidanceOutput(gradient=output.gradient, metrics={"size": output.gradient.norm()})

    def state_dict(self):
        own = {f"adapter.{name}": tensor for name, tensor in self.adapter.state_dict().items()}
        for number, state in enumerate(self.optimizer.state.values()):
            own |= {f"adam.{number}.{key}": tensor for key, tensor in state.items()}
        return own

    def load_state_dict(self, state_dict):
        prefix = "adapter."
        self.adapter.load_state_dict(
            {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        )
        for number, state in enumerate(self.optimizer.state.values()):
            for key, tensor in state.items():
                tensor.copy_(state_dict[f"adam.{number}.{key}"])


# A representation that is no mesh: densities and colours on a grid, seen along rays.


@dataclass(frozen=True)
class VolumeConfig:
    kind: str = "volume"
    side: int = 6
    samples: int = 8
    lr: float = 0.05
    fixed_shape: bool = False
    memory_settings: tuple = ()

    def requires(self):
        return Requirements()

    def render_bytes(self, *, low_memory):
        return 40 * self.samples

    def again_bytes(self, *, low_memory):
        return 0

    def render_work(self):
        return float(self.samples)

    def build(self, context):
        grid = 0.1 * torch.randn(4, *[self.side] * 3, generator=context.generator)
        return Volume(grid.to(context.device), self.samples, self.lr)


class Volume(torch.nn.Module):
    def __init__(self, grid, samples, lr):
        super().__init__()
        self.grid, self.samples = torch.nn.Parameter(grid), samples
        self._store = ParameterStore([ParameterGroup(name="grid", params=[self.grid], lr=lr)])

    def begin_step(self, step):
        pass

    def end_step(self, step):
        pass

    def regularizers(self, step):
        return {"size": 1e-3 * self.grid.square().sum()}

    def parameter_store(self):
        return self._store

    def look_up(self, points):
        grid = self.grid.expand(len(points), -1, -1, -1, -1)
        found = torch.nn.functional.grid_sample(grid, points, align_corners=True, padding_mode="zeros")
        return found[:, 0], found[:, 1:].sigmoid()

    def render(self, views, resolution, step):
        cameras, count = views.cameras, self.samples
        place = (torch.arange(resolution, device=self.grid.device) + 0.5) / resolution * 2 - 1
        y, x = torch.meshgrid(-place, place, indexing="ij")
        plane = torch.stack([x, y], dim=-1) / cameras.clip_from_camera[:, :1, :1, None]  # [B, H, W, 2]
        rays = torch.cat([plane, -torch.ones_like(plane[..., :1])], dim=-1)
        depth = cameras.distance[:, None] - 1 + 2 * (torch.arange(count) + 0.5) / count  # [B, S]
        points = rays[:, None] * depth[:, :, None, None, None]  # [B, S, H, W, 3]
        rotation = cameras.camera_from_world[:, :3, :3]
        world = torch.einsum("bshwi,bij->bshwj", points, rotation) + cameras.position[:, None, None, None]
        density, color = self.look_up(world)
        alpha = 1 - torch.exp(-(density + 0.5).clamp_min(0) * 2 / count)
        passed = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha], dim=1), dim=1)
        weight = (passed[:, :-1] * alpha)[..., None]  # [B, S, H, W, 1]
        covered = weight.sum(1)
        behind = views.background[:, None, None] * (1 - covered)
        return Rendering(
            color=(weight * color.movedim(1, -1)).sum(1) + behind,
            normal=torch.full_like(covered, 0.5).expand(-1, -1, -1, 3),
            depth=(weight * depth[:, :, None, None, None]).sum(1),
            alpha=covered,
            background=views.background,
        )

    def handover(self):
        def sdf(points):
            return -self.look_up(points[None, None, None])[0][0, 0, 0].detach()

        def material(points):
            color = self.look_up(points[None, None, None])[1][0, :, 0, 0].T.detach()
            return Material(color, torch.ones(len(points), 1), torch.zeros(len(points), 1))

        return Handover(surface=None, sdf=sdf, material=material)


# A rule with a state, and cameras.


@dataclass(frozen=True)
class HalvingClip:
    """Scales by a power of two so that the largest entry stays below what it was in the first call."""

    kind: str = "halving"

    def build(self):
        return Halving()


class Halving:
    def __init__(self):
        self.limit = torch.zeros(())

    def __call__(self, gradient):
        largest = torch.nan_to_num(gradient).abs().amax()
        self.limit = torch.where(self.limit > 0, self.limit, largest)
        over = (largest / self.limit.clamp_min(1e-30)).clamp_min(1).log2().ceil()
        return torch.nan_to_num(gradient) * torch.exp2(-over)

    def state_dict(self):
        return {"limit": self.limit}

    def load_state_dict(self, state_dict):
        self.limit = state_dict["limit"].clone()


@dataclass(frozen=True)
class RingConfig:
    """Cameras at one elevation, each of them random around it."""

    kind: str = "ring"
    elevation: float = 0.3

    def requires(self):
        return Requirements()

    def largest_fill(self, view):
        return 0.9

    def build(self, context):
        def sample(step):
            azimuth = 6.28 * torch.rand(context.batch, generator=step.generator("cameras"))
            elevation, fovy = torch.full_like(azimuth, self.elevation), torch.full_like(azimuth, 0.7)
            distance = fill_distance(fovy, torch.full_like(azimuth, 0.9))
            return orbit(azimuth, elevation, distance, fovy).to(context.device)

        return sample


def with_members(part, **members):
    """A configuration with members that its union does not name; all other checks run."""
    changed = object.__new__(type(part))
    for name, value in (vars(part) | members).items():
        object.__setattr__(changed, name, value)
    changed.__post_init__()
    return changed


SHAPE = DMTetConfig(resolution=8)


def make_config(folder, representation=SHAPE, **guidance):
    objective = with_members(
        ObjectiveConfig(batch=2),
        guidance=AdaptedConfig(**guidance),
        cameras=RingConfig(),
        clip=HalvingClip(),
    )
    stage = with_members(
        StageConfig(steps=STEPS, resolution=(32,), resolution_until=()),
        representation=representation,
        objectives={"color": objective},
    )
    logging = LoggingConfig(log_every=2, preview_every=0, checkpoint_every=100)
    return Config(models={"text": ModelConfig(name=str(folder))}, stages={"main": stage}, logging=logging)


def work_on(path, config, *, stop_at=0):
    """One process's share of a run; its parts as they are then."""
    run = RunDirectory(path) if path.exists() else RunDirectory.create(path)
    stop = StopFlag()

    def report(event):
        if event.report is not None and event.report.step == stop_at:
            stop.signal = 15

    context = RunContext.of(
        config, Task("a chair"), CpuRasterizer(), CPU, LoadedModels(locate_models(config, CPU), CPU)
    )
    with run:
        built = build_stage(context, "main")
        session = Session(run, config, CPU, report, stop, {"prompt": "a chair"})
        finished = session.optimize("main", built, run.load_checkpoint("main"), lambda path: None)
        assert finished == (not stop_at)
        return built, run.load_checkpoint("main"), session.record


def require_equal(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
