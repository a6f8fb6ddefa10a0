"""Build a run's configuration from layers: defaults, YAML files and dotted overrides, later ones winning.

Every error is a ConfigError that names the file or key, and the nearest valid key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from mm_spine.config import ConfigError, MethodConfig, RunConfig, expand_prompt, expand_votes
from mm_spine.config.versions import upgraded
from mm_spine.words import nearest

# Lists that may be written as one text: "tensorboard" or "tensorboard, wandb".
_LISTS = (("reporting", "trackers"), ("evaluation", "lmms_eval"))

# Top-level keys that people try and that no key of the tree resembles.
_ELSEWHERE = {
    "device": "a run uses the GPU if there is one (CUDA_VISIBLE_DEVICES= in the environment: the CPU)",
    "gpus": "start one process per GPU with torchrun or deepspeed",
    "output": "give it as the option --output FOLDER",
    "resume": "give it as the option --resume",
}


def expand_layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Write out the short forms of a layer.

    They are `method: ttrl`, `prompt: short`, `sampling: {votes: 64}`, and one text in place of a list:
    `trackers: tensorboard`.
    """
    found = dict(layer)
    if isinstance(layer.get("method"), str):
        found["method"] = {"name": layer["method"]}
    if "prompt" in layer:
        found["prompt"] = expand_prompt(layer["prompt"])
    if "sampling" in layer:
        found["sampling"] = expand_votes(layer["sampling"])
    for section, key in _LISTS:
        given = found.get(section)
        if isinstance(given, Mapping) and isinstance(given.get(key), str):
            found[section] = {**given, key: [word.strip() for word in given[key].split(",") if word.strip()]}
    return found


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; where both have a value, `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file as a mapping, safe-loaded. Raises ConfigError naming the file."""
    try:
        loaded = yaml.safe_load(path.read_text())
    # A date that does not exist is a ValueError, and so is a number too long to read.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path}: expected keys and values, found {type(loaded).__name__}")
    return dict(loaded)


def read_config(path: Path) -> dict[str, Any]:
    """Read a file with keys of the configuration, written by any version so far, in today's form.

    Raises ConfigError naming the file, also where a newer version wrote it.
    """
    return upgraded(read_yaml(path), path)


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse ["optim.lr=1e-4", ...] into a nested mapping. Values are read as YAML, short forms are written out.

    Raises ConfigError naming the override that cannot be read.
    """
    tree: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{pair!r}: overrides are written key=value, as in optim.lr=1e-4")
        try:
            nested: Any = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{pair!r}: the value cannot be read as YAML: {error}") from error
        for part in reversed(key.split(".")):
            nested = {part: nested}
        tree = merge(tree, expand_layer(nested))
    return tree


def build(
    *layers: Mapping[str, Any],
    method: type[MethodConfig] = MethodConfig,
    others: Mapping[str, Collection[str]] | None = None,
) -> RunConfig:
    """Merge the layers, later ones winning, and validate them, the section `method` as one of type `method`.

    `others` maps options that only other methods have to the names of these. Raises ConfigError with one line per
    wrong key.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, expand_layer(layer))
    if method is not MethodConfig:
        # A section that is left out would be the default one, of the common type.
        merged.setdefault("method", {})
    try:
        return RunConfig.model_validate(merged, context={"method": method})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, method, others or {}) for e in error.errors())) from error


def _explain(error: Any, method: type[MethodConfig], others: Mapping[str, Collection[str]]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        if key in _ELSEWHERE:
            return f"{key}: no such key; {_ELSEWHERE[key]}"
        if location[0] == "method" and (having := others.get(location[-1])):
            return f"{key}: not an option of this method; these have it: {', '.join(having)}"
        # The right name in the wrong place is a better guess than a similar name in this place.
        if elsewhere := [path for path in _all_keys(RunConfig, method) if path.split(".")[-1] == location[-1]]:
            return f"{key}: no such key; did you mean {' or '.join(map(repr, elsewhere))}?"
        return f"{key}: no such key; {nearest(location[-1], _keys(location[:-1], method))}"
    found = "" if isinstance(error["input"], Mapping) else f"={error['input']!r}"
    return f"{key}{found}: {error['msg'].removeprefix('Value error, ')}"


def _keys(location: list[str], method: type[MethodConfig]) -> list[str]:
    section: Any = RunConfig
    for part in location:
        section = _inner(section, part, method)
    return list(section.model_fields)


def _all_keys(section: Any, method: type[MethodConfig], prefix: str = "") -> list[str]:
    """Return the dotted keys of all values and sections below a section."""
    found: list[str] = []
    for name in section.model_fields:
        inner = _inner(section, name, method)
        within = _all_keys(inner, method, f"{prefix}{name}.") if hasattr(inner, "model_fields") else ()
        found += [prefix + name, *within]
    return found


def _inner(section: Any, name: str, method: type[MethodConfig]) -> Any:
    """Return the type of a key: `method` for the options of a method, TreeConfig for a `TreeConfig | None`."""
    if section is RunConfig and name == "method":
        return method
    annotation = section.model_fields[name].annotation
    return next((a for a in get_args(annotation) if isinstance(a, type)), annotation)
