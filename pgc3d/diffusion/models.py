"""Loading of a `LatentDiffusion` from a folder, a file or a hub id.

Weights are safetensors, code from a checkpoint is never run, and the network is used only for hub ids that
are not in the local cache.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from pgc3d.devices import reading_device
from pgc3d.diffusion.aliases import ALIASES, BUNDLED_CONTROL
from pgc3d.diffusion.files import (
    WEIGHTS,
    ModelFolder,
    loading,
    read_json,
    tensor_names,
    weight_files,
)
from pgc3d.diffusion.folder import open_folder
from pgc3d.diffusion.hub import POSES, Request, is_hub_id, set_environment, snapshot
from pgc3d.diffusion.kinds import check_part_listing, check_pipeline_listing, check_vae, read_schedule
from pgc3d.diffusion.latent import LatentDiffusion, Layout, Prediction
from pgc3d.diffusion.lora import Lora, fuse_loras
from pgc3d.diffusion.single_file import (
    describe_file,
    is_single_file,
    open_single,
    read_part,
    require_parts,
)
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.imports import importing_diffusers
from pgc3d.mini import control_model
from pgc3d.schedules import alphas_cumprod
from pgc3d.start_times import timed

PART_NAMES = {"vae": "VAE", "controlnet": "ControlNet"}


def resolve_model(
    model: str | Path,
    *,
    half: bool = False,
    cache: Path | None = None,
    network: bool = True,
    base: str | Path | None = None,
    prediction: Prediction | None = None,
    vae: str | Path | None = None,
) -> ModelFolder:
    """The checkpoint of a local folder or file, a hub id `owner/name`, or an alias from `ALIASES`.

    Args:
        model: as the user gave it. A folder that exists wins over a hub id of the same spelling.
        half: fetch the fp16 files where the hub has them.
        cache: the hub cache, None for the default folder.
        network: whether requests to the hub are allowed.
        base: the checkpoint whose configurations and tokenizers a single file uses, None for the one from
            which such files are derived.
        prediction: what the UNet predicts, None for the checkpoint's own entry.
        vae: another VAE's folder, hub id or alias.

    Raises:
        WeightsNotFoundError: it is missing, incomplete, or not at the pinned or recorded commit.
        ConfigError: it is another kind of model.
    """
    set_environment()
    name = str(model)
    if is_single_file(name) and not Path(name).is_dir():
        folder = _resolve_file(name, base, prediction, cache=cache, network=network, own_vae=vae is None)
    elif base is not None:
        raise ConfigError(f"base must go with a model that is one file, got {name}, which has its own parts")
    else:
        folder = _resolve_folder(name, half=half, cache=cache, network=network)
    if vae is not None:
        part = find_part(vae, "vae", half=half, network=network)
        check_vae(part, read_json(folder.path / "unet" / "config.json"))
        folder = replace(folder, vae=part)
    if prediction is not None:
        folder = replace(folder, scheduler={**folder.scheduler, "prediction_type": prediction})
    return folder


def local_model(name: str) -> ModelFolder | None:
    """A model that is on this disk whole, at its commit, else None; never uses the network."""
    try:
        return resolve_model(name, network=False)
    except WeightsNotFoundError:
        return None


def model_layout(name: str) -> Layout:
    """The layout of a model, from as few of its files as possible.

    Raises:
        WeightsNotFoundError: it is missing, and the hub cannot be reached.
        ConfigError: it is another kind of model.
    """
    if is_single_file(name) and not Path(name).is_dir():
        return describe_file(Path(name).expanduser()).layout
    if Path(name).expanduser().is_dir() or not is_hub_id(ALIASES.get(name, name)):
        return _resolve_folder(name).layout
    return _resolve_folder(name, weights=False).layout


def _resolve_folder(
    name: str, *, half: bool = False, cache: Path | None = None, network: bool = True, weights: bool = True
) -> ModelFolder:
    """The checkpoint of a folder; without `weights` only its configurations and tokenizers must exist."""
    folder, repository = Path(name).expanduser(), ALIASES.get(name, name)
    check = partial(open_folder, name, weights=weights)
    if folder.is_dir():
        return check(folder)
    if not is_hub_id(repository):
        requirement = (
            "--model must be a folder in diffusers' layout, a safetensors file or a hub id such as "
            f"{ALIASES['sdxl']}"
            if weights
            else "a model must be a folder or a hub id"
        )
        raise WeightsNotFoundError(f"{requirement}, got {name}, which does not exist")
    path = snapshot(
        Request(
            repository,
            check=check,
            check_listing=partial(check_pipeline_listing, repository),
            half=half,
            small=not weights,
            cache=cache,
            network=network,
        )
    )
    return check(path, commit=path.name, pose=POSES.get(repository))


def _resolve_file(
    name: str,
    base: str | Path | None,
    prediction: Prediction | None,
    *,
    cache: Path | None,
    network: bool,
    own_vae: bool,
) -> ModelFolder:
    path = Path(name).expanduser()
    kind = describe_file(path)
    if not kind.known_prediction and prediction is None:
        raise ConfigError(
            f"what the UNet of {path} predicts must be known, got no sign of it; use --set "
            "models.text.prediction=v_prediction for a model made from SD 2's 768 px, or =epsilon for one "
            "from its 512 px base, whose objectives.color.guidance.resolution is 512"
        )
    try:
        base_folder = _resolve_folder(str(base or kind.base), cache=cache, network=network, weights=False)
    except WeightsNotFoundError as error:
        raise WeightsNotFoundError(
            f"{path} must have tokenizers, got none; they come with its configurations from "
            f"{base or kind.base} (a few MB) or from a folder with --set models.text.base=FOLDER: {error}"
        ) from error
    require_parts(path, base_folder, vae=own_vae)
    return open_single(name, path, kind, base_folder)


def load_latent_diffusion(
    model: ModelFolder | str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    vae: str | Path | None = None,
    vae_dtype: torch.dtype | None = None,
    loras: Sequence[Lora] = (),
) -> LatentDiffusion:
    """Load the UNet and the VAE of any layout, frozen, in evaluation mode.

    Args:
        model: a resolved checkpoint, or an argument of `resolve_model`.
        device: of the modules.
        dtype: of the UNet; float32 on a CPU and float16 elsewhere when None.
        vae: another VAE's folder, hub id or alias, as "sdxl-vae-fp16-fix".
        vae_dtype: None: float32 on a CPU, else float16 where the VAE's configuration allows it, or bfloat16.
        loras: added to the UNet's weights.

    Raises:
        WeightsNotFoundError: weights are missing or damaged.
        ConfigError: the combination overflows, the checkpoint's scheduler is not supported, or a LoRA is made
            for another model.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    set_environment()
    folder = model if isinstance(model, ModelFolder) else resolve_model(model, half=dtype != torch.float32)
    other = folder.vae if vae is None else find_part(vae, "vae")
    vae_folder = other or folder.path / "vae"
    check_vae(vae_folder, read_json(folder.path / "unet" / "config.json"))
    vae_dtype = _vae_dtype(vae_folder, vae_dtype, device, layout=folder.layout)
    scheduler = read_schedule(folder.path, folder.scheduler)
    source, place = folder.path / "unet", reading_device(device)
    with ThreadPoolExecutor(1) as background:
        # The UNet's weights are read while the classes are imported: each takes seconds.
        state = background.submit(_state, source, place, dtype, folder.file)
        with timed("network classes"), importing_diffusers():
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        unet = load_module(
            UNet2DConditionModel, source, device=device, dtype=dtype, file=folder.file, state=state.result
        )
    fuse_loras(unet, "unet", loras)
    file = folder.file if other is None else None
    return LatentDiffusion(
        unet=unet,
        vae=load_module(AutoencoderKL, vae_folder, device=device, dtype=vae_dtype, file=file),
        alphas_cumprod=alphas_cumprod(scheduler).to(device),
        prediction=scheduler["prediction_type"],
        layout=folder.layout,
    )


def load_module(
    kind: Any,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    file: Path | None = None,
    state: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Any:
    """One of diffusers' modules, frozen, in evaluation mode; `kind` is its class.

    It is built on the meta device and its tensors are read from the files, without initialisation.

    Args:
        kind: the class.
        folder: with its configuration, and its weights unless they are in `file`.
        device: of the module.
        dtype: of its weights.
        file: a single file with all weights of its model.
        state: returns the tensors where they are read elsewhere.

    Raises:
        WeightsNotFoundError: weights are missing, damaged or of another shape.
        ConfigError: there are weights that the module has not: it is another kind of network.
    """
    with timed("weights"), loading(file or folder):
        with torch.device("meta"):
            module = kind.from_config(read_json(folder / "config.json"))
        tensors = state() if state is not None else _state(folder, reading_device(device), dtype, file)
        _require_fit(file or folder, module, tensors)
        module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature


def _state(folder: Path, device: str, dtype: torch.dtype, file: Path | None) -> dict[str, Tensor]:
    """A module's tensors by their current names; `device` is one of `reading_device`."""
    return {name: tensor.to(dtype) for name, tensor in _tensors(folder, device, dtype, file)}


def _tensors(
    folder: Path, device: str, dtype: torch.dtype, file: Path | None
) -> Iterable[tuple[str, Tensor]]:
    if file is not None:
        yield from read_part(file, folder.name, read_json(folder / "config.json"), device)
        return
    for part in weight_files(folder, WEIGHTS["unet"], prefer_half=dtype != torch.float32):
        tensor_names(part)
        for name, tensor in load_file(part, device=device).items():
            yield _current_name(name), tensor


def _require_fit(source: Path, module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that weights are exactly those of a module."""
    expected = module.state_dict()
    whose = f"{type(module).__name__} with its config.json"
    if missing := sorted(set(expected) - set(state)):
        raise WeightsNotFoundError(
            f"{source} must hold all weights of a {whose}, got {len(missing)} missing, the first is "
            f"{missing[0]}; fetch the checkpoint again"
        )
    if unknown := sorted(set(state) - set(expected)):
        raise ConfigError(
            f"{source} must hold the weights of a {whose} and no others, got {len(unknown)} unknown, the "
            f"first is {unknown[0]}; it is another kind of network, which is not supported"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise WeightsNotFoundError(
                f"{source} must hold the weights of a {whose}, but {name} has the shape {list(tensor.shape)} "
                f"instead of {list(expected[name].shape)}"
            )


def _current_name(name: str) -> str:
    """Weights with the names of older checkpoints' VAE attention replaced by diffusers' current ones."""
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    if match is None:
        return name
    part = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}[match[2]]
    return f"{match[1]}.{part}.{match[3]}"


def _vae_dtype(
    folder: Path, dtype: torch.dtype | None, device: torch.device, *, layout: Layout
) -> torch.dtype:
    config = read_json(folder / "config.json")
    # SDXL's VAE overflows in float16 unless its configuration allows it, SD's does not.
    upcast = bool(config.get("force_upcast", layout == "sdxl"))
    if dtype == torch.float16 and upcast:
        raise ConfigError(
            f"a VAE in float16 must not need float32 (force_upcast), got {folder}, which does; use "
            "bfloat16 (vae_dtype) or the VAE sdxl-vae-fp16-fix (vae)"
        )
    if dtype is not None:
        return dtype
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if upcast else torch.float16


def find_part(
    name: str | Path, part: Literal["vae", "controlnet"], *, half: bool = False, network: bool = True
) -> Path:
    """Folder of a single module: a local folder (also one that holds it as `part`), a hub id, or an alias.

    "mini-depth" is the bundled one, whatever folders there are.

    Raises:
        WeightsNotFoundError: it is missing or incomplete.
    """
    set_environment()
    folder = control_model() if str(name) == BUNDLED_CONTROL else Path(name).expanduser()
    if not folder.is_dir():
        repository = ALIASES.get(str(name), str(name))
        if not is_hub_id(repository):
            raise WeightsNotFoundError(
                f"the {PART_NAMES[part]} must be a folder, a hub id or an alias, got {name}, which does "
                "not exist"
            )
        check_listing = partial(check_part_listing, repository)
        request = Request(
            repository,
            check=_check_part,
            check_listing=check_listing,
            half=half,
            network=network,
            module=True,
        )
        folder = snapshot(request)
    folder = folder / part if (folder / part / "config.json").is_file() else folder
    _check_part(folder)
    return folder


def _check_part(folder: Path) -> None:
    read_json(folder / "config.json")
    for file in weight_files(folder, WEIGHTS["vae"], prefer_half=False):
        tensor_names(file)
