"""The Hugging Face hub: pinned commits of repositories, the local cache, and downloads.

A commit is pinned here, or recorded at the first download and used from then on. Only the files of
`files_to_fetch` are searched in the cache and downloaded, never a whole repository.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgc3d.diffusion.aliases import ALIASES
from pgc3d.diffusion.files import PICKLES, PROJECTIONS, WEIGHTS, Pose, read_json
from pgc3d.errors import ConfigError, WeightsNotFoundError

logger = logging.getLogger(__name__)

# The commit of a hub id that is not listed is recorded at its first download and used from then on.
PINNED = {
    "stabilityai/stable-diffusion-xl-base-1.0": "462165984030d82259a11f4367a4eed129e94a7b",
    "madebyollin/sdxl-vae-fp16-fix": "207b116dae70ace3637169f1ddd2434b91b3a8cd",
    "diffusers/controlnet-depth-sdxl-1.0": "26144a77791daea774e4761cb6e5bf19d11c822f",
    "diffusers/controlnet-depth-sdxl-1.0-small": "b890ef929eb80694d1218cee36ef5bcd7df32c7a",
    "lllyasviel/control_v11f1p_sd15_depth": "539f99181d33db39cf1af2e517cd8056785f0a87",
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
# Repositories that also have float16 weights, which are used on a CUDA device.
HALVES = frozenset(ALIASES[name] for name in ("sdxl", "sdxl-turbo", "sd", "sd-turbo", "sdxl-depth"))
# Repositories that may be missing on the hub, and their replacements.
SUCCESSORS = {ALIASES["sd-turbo"]: "sdxl-turbo", "stabilityai/stable-diffusion-2-1": "sd21"}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", *PROJECTIONS)
SMALL_FILES = re.compile(
    r"(model_index|view_prompts|vocabulary|zero123|config)\.json"
    r"|(scheduler|tokenizer|tokenizer_2|feature_extractor)/[^/]+\.(json|txt)"
    rf"|({'|'.join(PARTS)})/config\.json"
)


def no_check(*_: object) -> None:
    """No check."""


@dataclass(frozen=True)
class Request:
    """The files of a repository to fetch, and their checks."""

    repository: str
    check: Callable[[Path], Any]  # of a snapshot; raises WeightsNotFoundError where it is not whole
    # called with the listing and a snapshot of the small files (or None); raises before weights are fetched
    check_listing: Callable[[Sequence[str], Path | None], Any] = no_check
    half: bool = False  # fp16 files where the hub has them
    small: bool = False  # configurations and tokenizers only
    module: bool = False  # a repository of one module, as a VAE or a ControlNet
    file: str | None = None  # one file and nothing else
    cache: Path | None = None  # the hub cache, None for the usual place
    network: bool = True  # whether requests to the hub are allowed


def snapshot(request: Request) -> Path:
    """Folder of the snapshot, from the cache if it is complete there, else downloaded.

    Raises:
        WeightsNotFoundError: it is missing, incomplete, or not at the pinned or recorded commit.
        ConfigError: it is another kind of model, which is detected before any weight is fetched.
    """
    set_environment()
    repository = request.repository
    commit = held_commit(repository)
    cached, reason = cached_snapshot(repository, commit, request.cache), "it is not in the local cache"
    if cached is not None:
        try:
            request.check(cached)
        except WeightsNotFoundError as error:
            reason = f"the local copy is not whole: {error}"
        else:
            _record(repository, {"commit": cached.name})
            return cached
    elif others := _snapshots(repository, request.cache):
        reason = f"its commit {commit or 'main'} is not on this disk, only {others[0].name} in {others[0]}"
    if offline() or not request.network:
        raise unavailable(request, f"{reason}, and HF_HUB_OFFLINE forbids the network")
    path, licence = _download(request, commit)
    request.check(path)
    _record(repository, {"commit": path.name} | ({"licence": licence} if licence else {}))
    return path


def is_hub_id(name: str) -> bool:
    """Whether a string has the form of a hub id, `owner/name`, and not of a file with weights."""
    if name.endswith((".safetensors", *PICKLES)):
        return False
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def cache_folder() -> Path:
    """The folder of what this package keeps between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")) / "pgc3d"


def record_file() -> Path:
    """The file with the recorded commits of downloaded models."""
    return cache_folder() / "models.json"


def set_environment() -> None:
    """Disable telemetry and code from checkpoints, before the libraries are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def held_commit(repository: str) -> str | None:
    """The pinned or recorded commit, None where there is none."""
    return PINNED.get(repository) or recorded(repository).get("commit")


def cached_snapshot(repository: str, commit: str | None, cache: Path | None) -> Path | None:
    """The cached snapshot of the commit, or of the hub's main branch, or the only one; None if missing.

    It is found by its files: newer versions of the hub library treat a partial snapshot as incomplete and
    would use the network.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in ("model_index.json", "config.json"):
        file = try_to_load_from_cache(repository, name, cache_dir=cache, revision=commit)
        if isinstance(file, str):
            return Path(file).parent
    alternatives = _snapshots(repository, cache)
    return alternatives[0] if commit is None and len(alternatives) == 1 else None


def _snapshots(repository: str, cache: Path | None) -> list[Path]:
    """All cached snapshots of a repository."""
    from huggingface_hub import constants

    folder = Path(cache or constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    snapshots = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in snapshots if any((path / name).is_file() for name in _INDEXES)]


_INDEXES = ("model_index.json", "config.json")


def _download(request: Request, commit: str | None) -> tuple[Path, str]:
    """Fetch the small files, check them, and fetch the weights; the snapshot's folder and its licence."""
    with hub_errors(request, commit):
        api, info = describe(request.repository, commit)
        names = [sibling.rfilename for sibling in info.siblings or ()]

        def fetch(files: Sequence[str]) -> Path:
            path = api.snapshot_download(
                request.repository, revision=info.sha, cache_dir=request.cache, allow_patterns=list(files)
            )
            return Path(path)

        small = [name for name in names if SMALL_FILES.fullmatch(name)]
        folder = fetch(small) if small else None
        request.check_listing(names, folder)
        if folder is not None and request.small:
            return folder, licence_of(info)
        return fetch(files_to_fetch(names, half=request.half)), licence_of(info)


def describe(repository: str, commit: str | None) -> tuple[Any, Any]:
    """The hub's API and its information about a commit: the files and the resolved commit."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    info = api.model_info(repository, revision=commit, timeout=20)
    licence = licence_of(info) or "not stated"
    logger.info("fetching %s, commit %s, licence %s", repository, info.sha, licence)
    return api, info


def licence_of(info: Any) -> str:
    """The licence that a repository's card states, empty where it states none."""
    return str(getattr(info.card_data, "license", None) or "")


@contextmanager
def hub_errors(request: Request, commit: str | None) -> Iterator[None]:
    """Convert exceptions of the hub library to errors of one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise unavailable(request, "it needs a login, run `hf auth login` first") from error
    except RevisionNotFoundError as error:
        reason = f"the hub no longer has commit {commit}, to which it was pinned; if you trust the change, "
        reason += f"remove its entry from {record_file()} or give a folder"
        raise unavailable(request, reason) from error
    except RepositoryNotFoundError as error:
        instead = SUCCESSORS.get(request.repository)
        gone = f", it may have been removed: {instead} is the nearest replacement" if instead else ""
        raise unavailable(request, f"the hub has no such model with read access{gone}") from error
    except Exception as error:
        if not _is_network_error(error):
            raise
        raise unavailable(request, f"the hub cannot be reached ({type(error).__name__})") from error


def _is_network_error(error: Exception) -> bool:
    """Network errors of all HTTP libraries; which one is used depends on the version of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    library = type(error).__module__.partition(".")[0]
    known = (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError)
    return isinstance(error, known) or library in {"httpx", "httpx2", "httpcore", "requests", "urllib3"}


def files_to_fetch(names: Sequence[str], *, half: bool) -> list[str]:
    """The files of a hub repository that are loaded: small ones, and one precision of each part's weights."""
    selected = [name for name in names if SMALL_FILES.fullmatch(name)]
    for part in (*PARTS, ""):
        variants = {variant: part_weights(names, part, variant) for variant in ("", ".fp16")}
        first, second = (".fp16", "") if half else ("", ".fp16")
        selected += variants[first] or variants[second]
    return selected


def part_weights(names: Sequence[str], part: str, variant: str) -> list[str]:
    """The safetensors files of a part ("" for a repository of one module), shards and their index too."""
    stem = WEIGHTS[part.removesuffix("_2")] if part else WEIGHTS["vae"]
    prefix, variant = re.escape(f"{part}/{stem}" if part else stem), re.escape(variant)
    files = re.compile(
        rf"{prefix}(-\d+-of-\d+)?{variant}(-\d+-of-\d+)?\.safetensors"
        rf"|{prefix}\.safetensors\.index{variant}\.json"
    )
    return [name for name in names if files.fullmatch(name)]


def unavailable(request: Request, reason: str) -> WeightsNotFoundError:
    """The error for a repository that cannot be obtained, with the remedy."""
    if request.small:
        instead = ""
    elif request.module or request.file:
        instead = f" or give a {'file' if request.file else 'folder'} in its place"
    else:
        instead = ", give a folder with --model PATH, or use the bundled --guidance mini"
    return WeightsNotFoundError(
        f"the model {request.repository} must be available, but {reason}; fetch it with "
        f"`{fetch_command(request)}`{instead}"
    )


def fetch_command(request: Request) -> str:
    """The shell command that fetches the files of `snapshot` at its commit."""
    repository, commit = request.repository, held_commit(request.repository)
    variant = ".fp16" if request.half and repository in HALVES else ""
    stem = WEIGHTS["unet"]
    revision = f" --revision {commit}" if commit else ""
    if request.file:
        return f"hf download {repository}{revision} {request.file}"
    if request.module:
        patterns = ["config.json", f"{stem}{variant}.safetensors"]
    else:
        parts = ("unet", "vae", "*projection") if repository in POSES else ("unet", "vae")
        encoder = "image_encoder" if repository in POSES else "text_encoder*"
        patterns = ["*.json", "*.txt", *(f"{part}/{stem}{variant}.safetensors" for part in parts)]
        patterns += [f"{encoder}/model{variant}.safetensors"]
    if request.small:
        patterns = ["*.json", "*.txt"]
    return f"hf download {repository}{revision}" + "".join(f' --include "{item}"' for item in patterns)


def hub_file(repository: str, name: str | None, *, suffix: str = ".safetensors") -> tuple[Path, str]:
    """One file of a repository, from the cache or downloaded, and its commit.

    Args:
        repository: its hub id.
        name: of the file; None for the only file with the suffix.
        suffix: of the files to choose from.

    Raises:
        WeightsNotFoundError: it is missing.
        ConfigError: there are several files with the suffix and `name` is None.
    """
    from huggingface_hub import try_to_load_from_cache

    set_environment()
    name, commit = name or recorded(repository).get("file"), held_commit(repository)
    request = Request(repository, check=no_check, file=name or "FILE")
    if name is not None:
        file = try_to_load_from_cache(repository, name, revision=commit)
        if isinstance(file, str):
            commit = Path(file).parents[name.count("/")].name
            _record(repository, {"commit": commit})
            return Path(file), commit
    if offline():
        reason = f"its file {name or '*' + suffix} is not in the local cache, and HF_HUB_OFFLINE forbids the "
        raise unavailable(request, reason + "network")
    with hub_errors(request, commit):
        api, info = describe(repository, commit)
        chosen = name or _only([item.rfilename for item in info.siblings or ()], repository, suffix)
        path = api.hf_hub_download(repository, chosen, revision=info.sha)
    _record(repository, {"commit": info.sha} | ({} if name else {"file": chosen}))
    return Path(path), str(info.sha)


def _only(names: Sequence[str], repository: str, suffix: str) -> str:
    files = [name for name in names if name.endswith(suffix)]
    usual = [name for name in files if name == f"pytorch_lora_weights{suffix}"]
    if len(usual or files) == 1:
        return (usual or files)[0]
    if files:
        raise ConfigError(
            f"a file of {repository} must be named, as {repository}:{files[0]}, got {', '.join(files)}"
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    hint = f", only {pickles[0]}, a pickle, which is never loaded" if pickles else ""
    raise ConfigError(f"{repository} must hold a {suffix.removeprefix('.')} file, got none{hint}")


def recorded(repository: str) -> dict[str, str]:
    """The recorded commit of a repository, None before its first download."""
    path = record_file()
    entry = read_json(path).get(repository) if path.is_file() else None
    return entry if isinstance(entry, dict) else {}


def _record(repository: str, entry: Mapping[str, str]) -> None:
    """Record the commit; the file is replaced atomically."""
    path = record_file()
    content = read_json(path) if path.is_file() else {}
    known = recorded(repository)
    if (repository in PINNED and set(entry) == {"commit"}) or {**known, **entry} == known:
        return
    content[repository] = {**known, **entry}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            json.dump(content, file, indent=2, sort_keys=True)
        Path(file.name).replace(path)
    except OSError as error:
        logger.warning(
            "the commit of %s cannot be recorded: %s is not writable (%s)", repository, path, error
        )
