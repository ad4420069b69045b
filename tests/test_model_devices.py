"""Models on devices of their own: what moves, what comes back, what is planned, and what is refused."""

from dataclasses import fields, replace

import pytest
import torch
from fakes import FlatColor, PullTowardColor
from test_cli import run  # noqa: F401 - a fixture
from test_plan import GIB, SD, SDXL
from tiny import write_tiny_sdxl

from pgc3d.build.devices import require_model_devices, require_one_device
from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_stage
from pgc3d.cameras import OrbitConfig, sample_orbit
from pgc3d.config import load_config
from pgc3d.devices import constant_on, current, device_of, output_on, views_on
from pgc3d.diffusion.models import load_latent_diffusion
from pgc3d.errors import BackendUnavailableError, ConfigError, OutOfMemoryError
from pgc3d.optimize import Objective, Problem, optimization_step, optimize
from pgc3d.planning import plan
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task
from pgc3d.types import GuidanceOutput, Rendering, Step, Views

CPU = torch.device("cpu")
WHITE = ((1.0, 1.0, 1.0),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("devices"))


def two_models(folder, device="auto", **changes):
    """A run with an objective for each of two models, the second one on a device of its own."""
    guidance = {"kind": "sds", "resolution": -1}
    layer = {
        "run": {"seed": 3, "device": "cpu", "steps": 4, "resolution": [32], "resolution_until": []},
        "models": {
            "text": {"name": str(folder), "dtype": "float32"},
            "second": {"name": str(folder), "dtype": "float32", "device": device},
        },
        "representation": {"resolution": 8, "redistance_every": 0},
        "objectives": {
            "color": {"batch": 2, "guidance": {**guidance, "model": "text"}},
            "other": {"batch": 1, "guidance": {**guidance, "model": "second"}, "clip": {"kind": "none"}},
        },
    }
    return load_config([layer], options=changes)


def stage_after(config, device=CPU, *, steps=4):
    """The stage of a run after its steps, and its last metrics."""
    models = LoadedModels(locate_models(config, device), device)
    context = RunContext.of(config, Task("a red chair"), build_rasterizer("auto", device), device, models)
    built = build_stage(context, "main")
    reports = optimize(built.problem, steps=steps, resolution_at=lambda progress: 32, seed=3, log_every=steps)
    return built.problem, [report.metrics for report in reports][-1]


def test_a_device_that_is_the_run_s_own_changes_no_bit(folder):
    plain, metrics = stage_after(two_models(folder))
    named, same = stage_after(two_models(folder, "cpu"))
    found = [stage.representation.parameter_store().tensors() for stage in (plain, named)]
    assert all(map(torch.equal, *found))
    assert [objective.device for objective in named.objectives.values()] == [None, None]
    assert {name: value for name, value in metrics.items() if not name.startswith("seconds")} == {
        name: value for name, value in same.items() if not name.startswith("seconds")
    }


class Recording(PullTowardColor):
    """Appends its name when it is called."""

    def __init__(self, name, log, color):
        super().__init__(color=color)
        self.name, self.log = name, log

    def __call__(self, image, rendering, views, step):
        self.log.append(f"queue {self.name}")
        self.differentiable = rendering.color.requires_grad
        return super().__call__(image, rendering, views, step)


def problem(log, device):
    """Two objectives of a flat asset, of which `elsewhere` comes first."""

    def objective(name, color, where):
        def clip(gradient):
            log.append(f"clip {name}")
            return gradient.clamp(-0.1, 0.1)

        def cameras(step):
            return sample_orbit(2, OrbitConfig(), step.generator("cameras"))

        return Objective(cameras, Recording(name, log, color), clip, WHITE, device=where)

    asset = FlatColor(decay=0.1)
    asset.parameter_store().use_adam()
    objectives = {
        "elsewhere": objective("elsewhere", (1.0, 0.0, 0.0), device),
        "here": objective("here", (0.0, 0.0, 1.0), None),
    }
    return Problem(asset, objectives)


def test_work_elsewhere_is_queued_first_and_fetched_last():
    """So that nothing on the run's device stands between the two."""
    log = []
    parts = problem(log, CPU)
    optimization_step(parts, Step(0, 10), resolution=4)
    assert not parts.objectives["elsewhere"].guidance.differentiable
    assert log == ["queue elsewhere", "queue here", "clip here", "clip elsewhere"]
    log.clear()
    optimization_step(problem(log, None), Step(0, 10), resolution=4)
    assert log == ["queue elsewhere", "clip elsewhere", "queue here", "clip here"]


def test_the_order_of_objectives_changes_no_result_but_by_rounding():
    found = []
    for device in (CPU, None):
        parts = problem([], device)
        for index in range(10):
            output = optimization_step(parts, Step(index, 10), resolution=4)
        found.append((parts.representation.color.detach(), output.metrics))
    torch.testing.assert_close(*(color for color, _ in found))
    torch.testing.assert_close(*(dict(sorted(metrics.items())) for _, metrics in found))


def test_every_tensor_moves_and_none_keeps_a_gradient():
    """To the device without memory, which is on every computer."""
    meta = torch.device("meta")
    images = torch.rand(2, 4, 4, 3, requires_grad=True)
    ones, background = torch.ones(2, 4, 4, 1), torch.ones(2, 3)
    rendering = Rendering(images, images, ones, ones, background, torch.tensor(True))  # noqa: FBT003
    views = Views(sample_orbit(2, OrbitConfig(), torch.Generator()), background)
    output = GuidanceOutput(images, {"depth": ones}, {"loss": torch.tensor(1.0)})
    shown, moved, result = constant_on(meta, rendering), views_on(meta, views), output_on(meta, output)
    tensors = [getattr(shown, item.name) for item in fields(Rendering)]
    assert not any(tensor.requires_grad for tensor in tensors)
    tensors += [moved.background, *vars(moved.cameras).values()]
    tensors += [result.gradient, *result.buffers.values(), *result.metrics.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert constant_on(CPU, replace(rendering, complete=None)).complete is None


def test_a_name_stands_for_the_run_s_own_device_where_it_is_that():
    cuda = torch.device("cuda")
    assert device_of("auto", cuda) == device_of("cuda:0", cuda) == cuda
    assert device_of("cuda:1", cuda) == torch.device("cuda:1")
    assert device_of("cpu", CPU) == device_of("auto", CPU) == CPU
    assert (device_of("cuda:0", CPU), device_of("cpu", cuda)) == (torch.device("cuda:0"), CPU)
    with current(CPU):
        assert torch.ones(1).device == CPU


def sized(device, **run):
    models = {"text": {"name": "sdxl"}, "second": {"name": "sd", "device": device}}
    objectives = {
        "color": {"batch": 2, "guidance": {"kind": "sds", "model": "text"}},
        "other": {"batch": 2, "guidance": {"kind": "sds", "model": "second"}},
    }
    layer = {"run": run, "models": models, "resolution": [512], "resolution_until": []}
    return load_config([{**layer, "objectives": objectives}])


SIZES = {"text": SDXL, "second": SD}


def test_memory_is_planned_for_each_device():
    """The other model's weights and activations leave the run's device; its renders stay."""
    apart, together = sized("cuda:1"), sized("auto")
    whole = plan.estimate_run(together, SIZES)
    own, other = (plan.estimate_run(apart, SIZES, place) for place in ("auto", "cuda:1"))
    assert plan.estimate_run(apart, SIZES) == whole
    weights = 2 * SD.unet_parameters
    renders = 2 * 512**2 * together.last.representation.render_bytes(low_memory=False)
    assert own.bytes == pytest.approx(whole.bytes - weights + renders)
    assert weights < other.bytes < whole.bytes
    assert own.operations + other.operations == pytest.approx(whole.operations)
    assert plan.places(apart) == ["cuda:1"]
    assert plan.places(together) == []


def test_a_device_whose_memory_is_too_small_is_named():
    fitting, expected = plan.fit(sized("cuda:1"), SIZES, 80 * GIB, {"cuda:1": 40 * GIB})
    assert fitting == sized("cuda:1")
    assert expected == plan.estimate_run(fitting, SIZES, "auto")
    with pytest.raises(OutOfMemoryError, match=r"the run must fit cuda:1, where 1\.1 GB are free"):
        plan.fit(sized("cuda:1"), SIZES, 80 * GIB, {"cuda:1": GIB})
    with pytest.raises(OutOfMemoryError, match=r"the run must fit the GPU, where 1\.1 GB are free"):
        plan.fit(sized("cuda:1"), SIZES, GIB, {"cuda:1": 80 * GIB})


@pytest.mark.parametrize("name", ["cuda", "gpu", "cuda:-1", "cuda:x", "cuda:999", "", "mps"])
def test_other_names_of_devices_are_refused(name):
    with pytest.raises(ConfigError, match="device must be auto, cpu or cuda:N, got"):
        load_config([{"models": {"text": {"device": name}}}])


def test_initial_views_have_a_model_on_the_run_s_device():
    init = {"model": "second", "controls": {"depth": {"model": "sd-depth"}}}
    with pytest.raises(ConfigError, match=r"models\.second\.device must be auto for the initial views"):
        load_config([{"models": {"second": {"name": "sd", "device": "cuda:1"}}, "init": init}])


def test_what_cannot_be_is_refused_before_the_run(folder):
    far = two_models(folder, "cuda:99")
    with pytest.raises(BackendUnavailableError, match=r"models\.second\.device must be a device of this"):
        require_model_devices(far)
    with pytest.raises(ConfigError, match=r"must be auto in a run of 2 processes, .* got cuda:99; remove"):
        require_model_devices(far, 2)
    with pytest.raises(ConfigError, match="must be auto where an image"):
        require_one_device(far, "where an image itself is optimised")
    require_model_devices(two_models(folder), 2)
    require_model_devices(load_config([{"models": {"unused": {"device": "cuda:99"}}}]), 2)


def test_the_error_is_one_line_and_no_folder_is_made(run, tmp_path):
    code, out, err = run(
        "text", "a chair", "--guidance", "mini", "--out", "new", "--set", "models.text.device=cuda:99"
    )
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "models.text.device must be a device of this computer, got cuda:99, but" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.gpu
def test_on_two_gpus_the_gradients_are_those_of_one(folder):
    """In the moments of a step: Adam makes steps of one length, also of gradients that are noise."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    found = {}
    for name in ("auto", "cuda:1"):
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(1)
        config = two_models(folder, name, run={"device": "cuda"})
        stage, _ = stage_after(config, torch.device("cuda"), steps=1)
        state = stage.representation.parameter_store().state_dict()
        found[name] = {key: value for key, value in state.items() if key.endswith("exp_avg")}
        weights = {objective.guidance.model.device for objective in stage.objectives.values()}
        assert len(weights) == (1 if name == "auto" else 2)
    assert torch.cuda.max_memory_allocated(1) > 0
    assert found["auto"].keys() == found["cuda:1"].keys()
    for key, one in found["auto"].items():
        two = found["cuda:1"][key]
        assert one.device == two.device == torch.device("cuda:0")
        assert one.norm() > 0
        assert (one - two).norm() <= 1e-3 * one.norm(), key  # sums on a GPU are in no fixed order


@pytest.mark.gpu
def test_weights_of_a_process_are_read_to_its_own_gpu(folder):
    if torch.cuda.device_count() < 2:
        pytest.skip("two GPUs are needed")
    with torch.cuda.device(1):
        model = load_latent_diffusion(folder, device="cuda")
    assert {value.device.index for value in model.unet.state_dict().values()} == {1}
