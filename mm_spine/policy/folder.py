"""Resolve a model folder or hub id, and check the folder before anything large is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mm_spine.policy.errors import ModelAbsent, ModelError
from mm_spine.policy.families import Family, family_of

INDEX = "model.safetensors.index.json"


def resolve_model(name: str, fetch: bool = True) -> Path:
    """Return the checked folder of `name`, which is a folder or a hub id.

    A hub id is downloaded unless there is a local copy or `fetch` is False. Raises ModelError for a folder that cannot
    be used, and its subclass ModelAbsent for a hub id without a local copy that cannot be fetched.
    """
    folder = Path(name)
    if not folder.exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, local_files_only=not fetch))
        except LocalEntryNotFoundError as error:
            raise ModelAbsent(
                f"model={name}: not on this machine, and it cannot be fetched; give a folder, or go online ({error})"
            ) from error
        except (HFValidationError, HfHubHTTPError, OSError) as error:
            raise ModelError(f"model={name}: neither a folder nor a hub id that resolves here ({error})") from error
    check_model_folder(folder)
    return folder


def check_model_folder(folder: Path) -> None:
    """Check the config, the model type and the weight files of a folder.

    Raises ModelError if the config is missing or unreadable, the type is not supported, or a weight file is missing,
    truncated or corrupt. Only the headers of the weight files are read.
    """
    read_family(folder)
    shards = sorted(folder.glob("*.safetensors"))
    if absent := _listed_shards(folder) - {shard.name for shard in shards}:
        raise ModelError(f"model={folder}: {min(absent)} is missing, its index lists it; fetch it again")
    if not shards:
        raise ModelError(f"model={folder}: no *.safetensors weights there (pickled weights are not read)")
    for shard in shards:
        try:
            with safe_open(shard, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{shard}: corrupt or truncated safetensors ({error}); fetch it again") from error


def read_family(folder: Path) -> Family:
    """Return the family that the folder's config.json names. Raises ModelError."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"model={folder}: no config.json there; give a Hugging Face model folder or hub id")
    try:
        model_type: Any = json.loads(config.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{config}: not a JSON object ({error}); fetch it again") from error
    return family_of(model_type, folder)


def _listed_shards(folder: Path) -> set[str]:
    """Return the names of the weight files that the index lists; none without an index."""
    index = folder / INDEX
    return set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
