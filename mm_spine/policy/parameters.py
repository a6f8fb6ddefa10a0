"""Whether the stored tensors are exactly the parameters of the model that config.json describes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mm_spine.policy.errors import ModelError
from mm_spine.policy.families import Family, family_of

LAYER_COUNTS = ("num_hidden_layers", "depth")
"""Keys of config.json that say how many modules are built."""

SHOWN = 3
"""Names of parameters that a message lists."""


def check_parameters(folder: Path, family: Family, config: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Compare the stored tensors (`shapes`, by name) with the model of `config`, built without memory for weights.

    transformers itself matches the names, on the meta device, so that its renamings of older checkpoints hold here
    too. Raises ModelError for a parameter that is missing, left over or of another shape.
    """
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        for key in LAYER_COUNTS:
            count = part.get(key, 0)
            # A model of millions of layers would take hours to build, also without memory for weights.
            if not isinstance(count, int) or count > len(shapes):
                raise ModelError(
                    f"model={folder}: config.json says {key}={count!r}, and {len(shapes)} tensors are stored; "
                    "config and weights are not of one model, fetch both again"
                )
    import transformers

    try:
        with _quiet():
            model, found = getattr(transformers, family.auto_model).from_pretrained(
                folder,
                device_map="meta",
                dtype=torch.bfloat16,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    # A config with wrong values can fail anywhere in transformers, with errors of any type.
    except Exception as error:
        raise _no_model(folder, error) from error
    check_loaded(folder, found)
    check_tied(folder, model, shapes)


def read_text_config(folder: Path) -> Any:
    """Return the text model's part of config.json, with transformers' defaults for what it leaves out.

    Raises ModelError.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except Exception as error:
        raise _no_model(folder, error) from error


def described_parameters(folder: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of the parameters that config.json describes, without weights; tied ones once.

    Raises ModelError.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with _quiet(), torch.device("meta"):
            auto = getattr(transformers, family_of(config.model_type, folder).auto_model)
            model = auto.from_config(config, dtype=torch.bfloat16)
    except ModelError:
        raise
    except Exception as error:
        raise _no_model(folder, error) from error
    return [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def _no_model(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"model={folder}: config.json describes no model that can be built ({first_line(error)})")


def check_loaded(folder: Path, found: Mapping[str, Any]) -> None:
    """Raise ModelError if transformers' loading info names a parameter that is missing, left over or misshapen."""
    # transformers only warns, and fills what is missing at random.
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    misshapen = [f"{name} {tuple(stored)} for {tuple(wanted)}" for name, stored, wanted in found["mismatched_keys"]]
    parts = [
        *_part("missing", missing),
        *_part("left over", unexpected),
        *_part("of another shape than config.json says", sorted(misshapen)),
        *_part("not readable", [str(error) for error in found["error_msgs"]]),
    ]
    if parts:
        raise ModelError(
            f"model={folder}: its weights are not those of the model in config.json: {'; '.join(parts)}; "
            "fetch the folder again, or give the folder that the weights belong to"
        )


def check_tied(folder: Path, model: Any, shapes: Mapping[str, Any]) -> None:
    """Raise ModelError if config.json ties the head to the embedding and the two are stored with other values."""
    text = model.config.get_text_config()
    # Some families say it for the whole model, some for the text model, and some for only one of them.
    tied = any(getattr(config, "tie_word_embeddings", False) for config in (model.config, text))
    # Some families store it as `language_model.lm_head.weight`.
    head = next((name for name in shapes if name.endswith("lm_head.weight")), None)
    if not tied or head is None:
        return
    from safetensors import safe_open

    embedding = next((name for name in shapes if name.endswith("embed_tokens.weight")), head)
    values: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys()) & {embedding, head}
            values |= {name: stored.get_tensor(name) for name in names}
    if not torch.equal(values[embedding], values[head]):
        raise ModelError(
            f"model={folder}: config.json says tie_word_embeddings=true, but {head} is stored and differs from "
            f"{embedding}; set it to false, or fetch the folder again"
        )


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error, at most 200 characters."""
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text[:200]}"


def _part(what: str, names: Collection[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{len(names)} {what} ({', '.join(list(names)[:SHOWN])}{more})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bar and its report of what did not match; the error says it."""
    from transformers.utils import logging as levels

    level, bar = levels.get_verbosity(), levels.is_progress_bar_enabled()
    levels.set_verbosity(logging.CRITICAL)
    levels.disable_progress_bar()
    try:
        yield
    finally:
        levels.set_verbosity(level)
        if bar:
            levels.enable_progress_bar()
