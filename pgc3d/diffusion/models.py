"""The model store: a folder or hub id to a `LatentDiffusion`, with the hub's commit pinned or recorded.

Weights are safetensors, code from a checkpoint is never run, and the network is used only where a hub id is
not in the local cache yet.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from pgc3d.diffusion.files import (
    PROJECTIONS,
    WEIGHTS,
    ModelFolder,
    Pose,
    loading,
    open_folder,
    read_json,
    tensor_names,
    weight_files,
)
from pgc3d.diffusion.latent import LatentDiffusion, Layout, Prediction
from pgc3d.diffusion.lora import Lora, fuse_loras
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.schedules import noise_levels

logger = logging.getLogger(__name__)

CONTROL_ALIASES = {
    "sdxl-depth": "diffusers/controlnet-depth-sdxl-1.0",
    "sdxl-depth-small": "diffusers/controlnet-depth-sdxl-1.0-small",
    "sd-depth": "lllyasviel/control_v11f1p_sd15_depth",
    "sd-normal": "lllyasviel/control_v11p_sd15_normalbae",
}
ALIASES = CONTROL_ALIASES | {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-turbo": "stabilityai/sdxl-turbo",  # same layout and noise levels, made for 512 px
    "sd": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd-turbo": "stabilityai/sd-turbo",
    "sdxl-vae-fp16-fix": "madebyollin/sdxl-vae-fp16-fix",
    "zero123": "ashawkey/zero123-xl-diffusers",
    "stable-zero123": "ashawkey/stable-zero123-diffusers",
}
# A hub id that is not listed is recorded at its first download and held to that commit from then on.
PINNED = {
    "stabilityai/stable-diffusion-xl-base-1.0": "462165984030d82259a11f4367a4eed129e94a7b",
    "madebyollin/sdxl-vae-fp16-fix": "207b116dae70ace3637169f1ddd2434b91b3a8cd",
    "diffusers/controlnet-depth-sdxl-1.0": "26144a77791daea774e4761cb6e5bf19d11c822f",
    "diffusers/controlnet-depth-sdxl-1.0-small": "b890ef929eb80694d1218cee36ef5bcd7df32c7a",
    "lllyasviel/control_v11f1p_sd15_depth": "7c693a1fe066e89184a9e04489e0d3a3519a1aa3",
    "lllyasviel/control_v11p_sd15_normalbae": "cb7296e6587a219068e9d65864e38729cd862aa8",
    "ashawkey/zero123-xl-diffusers": "10e9e8e75adaa3bf77f5ac9c381419016fed68c7",
    "ashawkey/stable-zero123-diffusers": "a6c09344fbd45843d35f2095c203c4a8e55b4dbb",
}
POSES: Mapping[str, Pose] = {
    "ashawkey/zero123-xl-diffusers": "radius",
    "bennyguo/zero123-xl-diffusers": "radius",
    "kxic/zero123-xl": "radius",
    "ashawkey/stable-zero123-diffusers": "polar",
}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", *PROJECTIONS)
PART_NAMES = {"vae": "VAE", "controlnet": "ControlNet"}
SMALL_FILES = re.compile(
    r"(model_index|view_prompts|vocabulary|zero123|config)\.json"
    r"|(scheduler|tokenizer|tokenizer_2|feature_extractor)/[^/]+\.(json|txt)"
    rf"|({'|'.join(PARTS)})/config\.json"
)


def resolve_model(model: str | Path, *, half: bool = False, cache: Path | None = None) -> ModelFolder:
    """Find a checkpoint: a local folder, a hub id `owner/name`, or an alias from `ALIASES`.

    Args:
        model: what the user asked for. A folder that exists wins over a hub id of the same spelling.
        half: fetch the fp16 files where the hub has them.
        cache: the hub cache, None for the usual place.

    Raises:
        WeightsNotFoundError: it is nowhere, not whole, or not at the commit that was pinned or recorded.
        ConfigError: it is another kind of model.
    """
    _set_environment()
    name = str(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return open_folder(name, folder)
    repository = ALIASES.get(name, name)
    if not is_hub_id(repository):
        raise WeightsNotFoundError(
            f"--model must be a folder in diffusers' layout or a hub id such as {ALIASES['sdxl']}, "
            f"no folder {name}"
        )
    path = _from_hub(repository, half=half, cache=cache, check=lambda found: open_folder(name, found))
    return open_folder(name, path, commit=path.name, pose=POSES.get(repository))


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
        model: a resolved checkpoint, or what `resolve_model` takes.
        device: where the modules go.
        dtype: of the UNet; float32 on a CPU and float16 elsewhere when None.
        vae: another VAE's folder, hub id or alias, as "sdxl-vae-fp16-fix".
        vae_dtype: when None float32 on a CPU, else float16 for a VAE that says it can, else bfloat16.
        loras: added to the UNet's weights.

    Raises:
        WeightsNotFoundError: weights are missing or damaged.
        ConfigError: the combination overflows, the checkpoint's scheduler is not supported, or a LoRA is made
            for another model.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    _set_environment()
    folder = model if isinstance(model, ModelFolder) else resolve_model(model, half=dtype != torch.float32)
    vae_folder = (folder.vae or folder.path / "vae") if vae is None else find_part(vae, "vae")
    vae_dtype = _vae_dtype(vae_folder, vae_dtype, device, layout=folder.layout)
    scheduler = read_json(folder.path / "scheduler" / "scheduler_config.json")
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in get_args(Prediction):
        raise ConfigError(
            f"prediction_type must be one of {get_args(Prediction)}, {folder.path} has {prediction!r}"
        )
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = load_module(UNet2DConditionModel, folder.path / "unet", device=device, dtype=dtype)
    fuse_loras(unet, "unet", loras)
    return LatentDiffusion(
        unet=unet,
        vae=load_module(AutoencoderKL, vae_folder, device=device, dtype=vae_dtype),
        alphas_cumprod=noise_levels(scheduler).to(device),
        prediction=prediction,
        layout=folder.layout,
    )


def is_hub_id(name: str) -> bool:
    """Whether a string is spelled like a hub id, `owner/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def record_file() -> Path:
    """Where the commits of downloaded models are written down."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "pgc3d" / "models.json"


def load_module(kind: Any, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """One of diffusers' modules, frozen, in evaluation mode; `kind` is its class.

    It is built on the meta device and takes the tensors from the files: nothing is initialised in vain.

    Raises:
        WeightsNotFoundError: weights are missing or damaged.
    """
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    files = weight_files(folder, WEIGHTS["unet"], prefer_half=dtype != torch.float32)
    with loading(folder):
        with torch.device("meta"):
            module = kind.from_config(config)
        state = {}
        for file in files:
            tensor_names(file)
            for name, tensor in load_file(file, device=str(device)).items():
                state[_current_name(name)] = tensor.to(dtype)
        missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    if missing:
        raise WeightsNotFoundError(
            f"{files[0]} must hold all weights of {folder.name}/config.json, {len(missing)} are missing, the "
            f"first is {missing[0]}; fetch the checkpoint again"
        )
    if unexpected:
        logger.warning("%s holds %d weights that its config does not use", files[0], len(unexpected))
    return module.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature


def _current_name(name: str) -> str:
    """Older checkpoints name the parts of the VAE's attention differently."""
    match = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    if match is None:
        return name
    part = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}[match[2]]
    return f"{match[1]}.{part}.{match[3]}"


def _vae_dtype(
    folder: Path, dtype: torch.dtype | None, device: torch.device, *, layout: Layout
) -> torch.dtype:
    config = read_json(folder / "config.json")
    if config.get("latents_mean") is not None:
        raise ConfigError(
            f"a VAE must scale all latents alike, but {folder} has means of each; use another VAE"
        )
    # SDXL's VAE overflows unless it says otherwise, SD's does not, and older configs say nothing.
    upcast = config.get("force_upcast", True if layout == "sdxl" else None)
    if dtype == torch.float16 and upcast is True:
        raise ConfigError(
            f"a VAE in float16 must not need float32 (force_upcast), {folder} does and would overflow; use "
            "bfloat16 (model.vae_dtype) or the VAE sdxl-vae-fp16-fix (model.vae)"
        )
    if dtype is not None:
        return dtype
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if upcast is False else torch.bfloat16


def find_part(name: str | Path, part: Literal["vae", "controlnet"], *, half: bool = False) -> Path:
    """Folder of a single module: a local folder (also one that holds it as `part`), a hub id, or an alias.

    Raises:
        WeightsNotFoundError: it is nowhere, or not whole.
    """
    _set_environment()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        repository = ALIASES.get(str(name), str(name))
        if not is_hub_id(repository):
            raise WeightsNotFoundError(
                f"the {PART_NAMES[part]} must be a folder, a hub id or an alias, no folder {name}"
            )
        folder = _from_hub(repository, half=half, cache=None, check=_check_part)
    folder = folder / part if (folder / part / "config.json").is_file() else folder
    _check_part(folder)
    return folder


def _check_part(folder: Path) -> None:
    read_json(folder / "config.json")
    for file in weight_files(folder, WEIGHTS["vae"], prefer_half=False):
        tensor_names(file)


def _set_environment() -> None:
    """No telemetry, and no code from checkpoints; read by the libraries when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _from_hub(repository: str, *, half: bool, cache: Path | None, check: Any) -> Path:
    """Folder of the hub's snapshot, from the cache if it is whole there, else downloaded."""
    _set_environment()
    commit = PINNED.get(repository) or _recorded(repository)
    cached, reason = _cached(repository, commit, cache), "it is not in the local cache"
    if cached is not None:
        try:
            check(cached)
        except WeightsNotFoundError as error:
            reason = f"the local copy is not whole: {error}"
        else:
            _record(repository, cached.name)
            return cached
    if _offline():
        raise _unavailable(repository, f"{reason}, and HF_HUB_OFFLINE forbids the network")
    path = _download(repository, commit, half=half, cache=cache)
    check(path)
    _record(repository, path.name)
    return path


def _cached(repository: str, commit: str | None, cache: Path | None) -> Path | None:
    """Find the snapshot by a file in it.

    Newer versions of the hub library call a snapshot that holds only what is needed incomplete, and would go
    to the network for it.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in ("model_index.json", "config.json"):
        file = try_to_load_from_cache(repository, name, cache_dir=cache, revision=commit)
        if isinstance(file, str):
            return Path(file).parent
    return None


def _download(repository: str, commit: str | None, *, half: bool, cache: Path | None) -> Path:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        info = api.model_info(repository, revision=commit, timeout=20)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        licence = getattr(info.card_data, "license", None) or "not stated"
        logger.info("downloading %s, commit %s, licence %s", repository, info.sha, licence)
        path = api.snapshot_download(
            repository, revision=info.sha, cache_dir=cache, allow_patterns=wanted_files(names, half=half)
        )
    except GatedRepoError as error:
        raise _unavailable(repository, "its owner asks for a login, run `hf auth login` first") from error
    except RevisionNotFoundError as error:
        raise _unavailable(
            repository,
            f"the hub no longer has commit {commit}, to which it was pinned; if you trust the change, remove "
            f"its entry from {record_file()} or give a folder",
        ) from error
    except RepositoryNotFoundError as error:
        raise _unavailable(repository, "the hub has no such model that you may read") from error
    except Exception as error:
        if not _is_network_error(error):
            raise
        raise _unavailable(repository, f"the hub cannot be reached ({type(error).__name__})") from error
    return Path(path)


def _is_network_error(error: Exception) -> bool:
    """Which HTTP library raises depends on the version of huggingface_hub; they share no base class."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    library = type(error).__module__.partition(".")[0]
    known = (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    return isinstance(error, known) or library in {"httpx", "httpx2", "httpcore", "requests", "urllib3"}


def wanted_files(names: list[str], *, half: bool) -> list[str]:
    """The files of a hub repository that are loaded: small ones, and one precision of each part's weights."""
    wanted = [name for name in names if SMALL_FILES.fullmatch(name)]
    for part in (*PARTS, ""):
        stem = WEIGHTS[part.removesuffix("_2")] if part else WEIGHTS["vae"]
        prefix = f"{part}/{stem}" if part else stem
        variants = {
            variant: [
                name
                for name in names
                if re.fullmatch(
                    rf"{re.escape(prefix)}(-\d+-of-\d+)?{re.escape(variant)}(-\d+-of-\d+)?\.safetensors"
                    rf"|{re.escape(prefix)}\.safetensors\.index{re.escape(variant)}\.json",
                    name,
                )
            ]
            for variant in ("", ".fp16")
        }
        first, second = (".fp16", "") if half else ("", ".fp16")
        wanted += variants[first] or variants[second]
    return wanted


def _unavailable(repository: str, reason: str) -> WeightsNotFoundError:
    return WeightsNotFoundError(
        f"the model {repository} must be available, {reason}; fetch it with `hf download {repository}`, "
        "give a folder with --model PATH, or use the bundled --guidance mini"
    )


def _recorded(repository: str) -> str | None:
    path = record_file()
    entry = read_json(path).get(repository) if path.is_file() else None
    return entry.get("commit") if isinstance(entry, dict) else None


def _record(repository: str, commit: str) -> None:
    """Write the commit down, replacing the file in one go so that it is never half written."""
    path = record_file()
    content = read_json(path) if path.is_file() else {}
    if repository in PINNED or content.get(repository) == {"commit": commit}:
        return
    content[repository] = {"commit": commit}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        json.dump(content, file, indent=2, sort_keys=True)
    Path(file.name).replace(path)
