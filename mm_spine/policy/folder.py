"""Resolve a model folder or hub id, and check the whole folder before anything large is read.

`check_model_folder` is the one check: every command, `Policy.load` and the lmms-eval plugin call it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mm_spine.policy.errors import ModelAbsent, ModelError
from mm_spine.policy.families import Family, family_of
from mm_spine.policy.parameters import check_parameters
from mm_spine.policy.processor_files import check_processor

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

FLOATS = ("F16", "BF16", "F32", "F64")
"""The types of stored weights that are read, as safetensors names them."""

_checked: set[tuple[Any, ...]] = set()


def resolve_model(name: str, fetch: bool = True) -> Path:
    """Return the checked folder of `name`: see `locate_model`. Raises ModelError for a folder that cannot be used."""
    folder = locate_model(name, fetch)
    check_model_folder(folder)
    return folder


def locate_model(name: str, fetch: bool = True) -> Path:
    """Return the folder of `name`, which is a folder or a hub id.

    A hub id is downloaded unless there is a local copy or `fetch` is False. Raises ModelError for what is neither, and
    its subclass ModelAbsent for a hub id without a local copy that cannot be fetched.
    """
    folder = Path(name)
    if not folder.exists():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            try:
                folder = Path(snapshot_download(name, local_files_only=not fetch))
            except Exception as error:
                # It looks into its cache where nothing answers, but not where it is a proxy that does not.
                if type(error).__name__ != "ProxyError":
                    raise
                folder = Path(snapshot_download(name, local_files_only=True))
        except LocalEntryNotFoundError as error:
            why = str(error).partition("\n")[0]
            raise ModelAbsent(
                f"model={name}: not on this machine, and it cannot be fetched; give a folder, or go online ({why})"
            ) from error
        except (HFValidationError, HfHubHTTPError, OSError) as error:
            raise ModelError(f"model={name}: neither a folder nor a hub id that resolves here ({error})") from error
    return folder


def check_model_folder(folder: Path) -> None:
    """Check that a folder holds one whole model: config, weights, tokenizer, processor, chat template and end tokens.

    No weights are read, only the headers of their files. Raises ModelError naming the folder or file, what was found
    and what to do. A folder whose files have not changed since its last check is not checked again.
    """
    seen = _files_of(folder)
    if seen in _checked:
        return
    config = read_config(folder)
    family = family_of(config.get("model_type"), folder)
    _check_unquantised(folder, config)
    shapes = _stored_shapes(folder)
    check_parameters(folder, family, config, shapes)
    check_processor(folder, family)
    _checked.add(seen)


def read_family(folder: Path) -> Family:
    """Return the family that the folder's config.json names. Raises ModelError."""
    return family_of(read_config(folder).get("model_type"), folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json. Raises ModelError if it is missing or not a JSON object."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"model={folder}: no config.json there; give a Hugging Face model folder or hub id")
    return _read_object(config)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{path}: not a JSON object ({error}); fetch it again") from error
    return found


def _files_of(folder: Path) -> tuple[Any, ...]:
    """Return what identifies the state of the folder's files: names, sizes and times."""
    if not folder.is_dir():
        return (str(folder),)
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return (str(folder.resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


def _check_unquantised(folder: Path, config: dict[str, Any]) -> None:
    """Raise ModelError for quantised weights, which can neither be trained nor compared exactly."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                settings = part[key]
                method = settings.get("quant_method") if isinstance(settings, dict) else settings
                raise ModelError(
                    f"model={folder}: config.json has a {key} ({method or 'without a method'}): quantised weights "
                    "cannot be trained; give the model in float32, float16 or bfloat16"
                )


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the tensors in the weight files, from their headers.

    Raises ModelError if a file is missing, truncated or corrupt, and for a tensor that is not of floats.
    """
    shards = _weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    if part.get_dtype() not in FLOATS:
                        raise ModelError(
                            f"{shard}: {name} is stored as {part.get_dtype()}: quantised or damaged weights; give the "
                            "model in float32, float16 or bfloat16"
                        )
                    shapes[name] = tuple(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{shard}: corrupt or truncated safetensors ({error}); fetch it again") from error
    return shapes


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers reads: model.safetensors, or else those that the index lists."""
    if (folder / WEIGHTS).is_file():
        # An index beside it would be ignored, and with it whatever its other files hold.
        listed = set(_listed_shards(folder))
        if absent := listed - {WEIGHTS} - {path.name for path in folder.glob("*.safetensors")}:
            raise ModelError(f"model={folder}: {min(absent)} is missing, its index lists it; fetch it again")
        if listed - {WEIGHTS}:
            raise ModelError(f"model={folder}: it has {WEIGHTS} and {INDEX} with other files; remove one of the two")
        return [folder / WEIGHTS]
    listed = set(_listed_shards(folder))
    present = {path.name for path in folder.glob("*.safetensors")}
    if absent := listed - present:
        raise ModelError(f"model={folder}: {min(absent)} is missing, its index lists it; fetch it again")
    if not present:
        raise ModelError(f"model={folder}: no *.safetensors weights there (pickled weights are not read)")
    if not listed:
        raise ModelError(
            f"model={folder}: neither {WEIGHTS} nor {INDEX}, only {min(present)}; fetch the folder again, or rename it"
        )
    return [folder / name for name in sorted(listed)]


def _listed_shards(folder: Path) -> Iterator[str]:
    """Yield the names of the weight files that the index lists; none without an index. Raises ModelError."""
    index = folder / INDEX
    if not index.is_file():
        return
    names = _read_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index}: no weight_map of tensor names to file names; fetch it again")
    for name in names.values():
        if Path(name).name != name:
            raise ModelError(f"{index}: it lists {name!r}, which is not a file of this folder; fetch it again")
        yield name
