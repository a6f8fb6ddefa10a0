"""The configuration of a folder of the user's own: configs/own.yaml, whose values depend on the size of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mm_spine.benchmarks import BENCHMARKS
from mm_spine.config import RunConfig
from mm_spine.config.layers import expand_layer, merge, read_yaml
from mm_spine.configs import FOLDER
from mm_spine.policy.errors import ModelError
from mm_spine.policy.folder import locate_model, read_config
from mm_spine.policy.public_models import PUBLIC_MODELS, text_parameters

FILE = FOLDER / "own.yaml"

UNKNOWN = 7e9
"""Parameters that a model is taken to have whose size cannot be found: the sizes around it have the same values."""


class OwnValues(NamedTuple):
    """What own.yaml says for a model: values for any model, those for its size, and its text model's parameters."""

    common: dict[str, Any]
    sized: dict[str, Any]
    parameters: int | None

    @property
    def layer(self) -> dict[str, Any]:
        """All values, as a layer of a configuration."""
        return merge(self.common, self.sized)


def applies_to(target: str) -> bool:
    """Whether a run of `target` starts from own.yaml: it is neither a benchmark's name nor a YAML file."""
    return target not in BENCHMARKS and Path(target).suffix not in (".yaml", ".yml")


def own_values(given: Mapping[str, Any]) -> OwnValues:
    """Return own.yaml's values for the model that the layer `given` names.

    The learning rate goes by what trains, which `given` may say too.
    """
    common = expand_layer(read_yaml(FILE))
    sizes = common.pop("sizes")
    section = given.get("model")
    model: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    parameters = find_parameters(model.get("path"))
    row = next(row for row in sizes if (parameters or UNKNOWN) < row["below"] * 1e9)
    sized = {key: value for key, value in row.items() if key != "below"}
    rates = sized["optim"]["lr"]
    train = model.get("train", sized["model"]["train"])
    # A wrong `train` is refused when the configuration is validated.
    rate = rates.get(train, rates["full"]) if isinstance(train, str) else rates["full"]
    return OwnValues(common, merge(sized, {"optim": {"lr": rate}}), parameters)


def find_parameters(model: Any) -> int | None:
    """Return the parameters of the text model of a folder or hub id, by its config.json; None where there is none.

    Of a hub id that is not on this machine, only config.json is fetched, unless the shipped table has it.
    """
    if not isinstance(model, str) or not model.strip():
        return None
    try:
        return text_parameters(read_config(locate_model(model, fetch=False)))
    except ModelError:
        pass
    if model in PUBLIC_MODELS:
        return text_parameters(PUBLIC_MODELS[model])
    return None if Path(model).exists() else _fetched(model)


@lru_cache
def _fetched(model: str) -> int | None:
    from huggingface_hub import hf_hub_download

    try:
        found = json.loads(Path(hf_hub_download(model, "config.json")).read_text())
    # Whatever is wrong with the name, the network or the file is said where the model itself is fetched.
    except Exception:
        return None
    return text_parameters(found) if isinstance(found, dict) else None


def used_lines(config: RunConfig, given: Mapping[str, Any], sections: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for the values of own.yaml that `config` uses and the layer `given` does not set, "" for none.

    With `sections`, only those of the configuration.
    """
    found = own_values(given)
    size = "as for 7 billion parameters, since the model's size is not known"
    if found.parameters is not None:
        size = f"for a text model of {_billions(found.parameters)} parameters"
    set_by_user, used = _flat(expand_layer(given)), _flat(config.model_dump(mode="json"))
    for what, values in (("for any model", found.common), (size, found.sized)):
        keys = [key for key in _flat(values) if key not in set_by_user and key != "method.name"]
        chosen = [f"{key}={_as_yaml(used[key])}" for key in keys if not sections or key.partition(".")[0] in sections]
        if chosen:
            yield f"own.yaml, {what}: {' '.join(chosen)}"


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
