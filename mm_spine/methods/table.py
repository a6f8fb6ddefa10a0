"""The methods: one row each. A new method is a row here, and where it needs one a function in `choices`.

The trainer never asks for a method's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mm_spine.config import ConfigError, MethodConfig, RunConfig
from mm_spine.config.layers import build, expand_layer, merge
from mm_spine.methods import rows_sampling
from mm_spine.methods.choices import (
    exact_share,
    from_labels,
    lowest_share,
    median_band,
    negative_entropy,
    otsu_split,
    quantile_band,
    random_draw,
    token_position,
    top_share,
)
from mm_spine.methods.method import Credit, Method, rule, usual_credit
from mm_spine.words import nearest

TTRL = "arXiv 2504.16084"
SPINE = "arXiv 2511.17938"
_TTRL_OPTIONS = {"kl": "k3", "kl_weight": 0.001}
_SPINE_OPTIONS = {"kl": "exact", "kl_weight": 0.01}
# Equations 2 and 3 of ETTRL: the population's standard deviation, and each response averaged over its own tokens.
_ETTRL_OPTIONS = {
    **_TTRL_OPTIONS,
    "std": "population",
    "policy_denominator": "response",
    "kl_denominator": "response",
}


def _ear_credit(options: MethodConfig) -> Sequence[Credit]:
    return [*usual_credit(options), rule("credit", "entropy_shaped")(options)]


METHODS: Mapping[str, Method] = {
    "none": Method("no adaptation: the base model and its vote", "-", trains=False),
    "ttrl": Method("majority reward, all tokens", TTRL, signal=token_position, entropies=False, options=_TTRL_OPTIONS),
    "ttrl-ear": Method(
        "ttrl with entropy-shaped advantages (method.ear: adv_res | adv_clip)",
        "arXiv 2508.11356",
        credit=_ear_credit,
        options=_ETTRL_OPTIONS,
    ),
    "ettrl": Method(
        "tree rollouts (ETMR) with entropy-shaped advantages (method.ear: adv_res | adv_clip)",
        "arXiv 2508.11356",
        credit=_ear_credit,
        options=_ETTRL_OPTIONS,
        sampling={"tree": {}},
    ),
    "rent": Method("reward of low entropy instead of a vote", "RENT", reward=negative_entropy),
    "spine": Method(
        "forking tokens (top 20 % entropy) with a quantile band (v1)",
        SPINE,
        policy_mask=top_share,
        bounds=quantile_band,
        options=_SPINE_OPTIONS,
    ),
    "spine-v2": Method(
        "forking tokens (Otsu) with a median/MAD band (v2)",
        SPINE,
        policy_mask=otsu_split,
        band_mask=otsu_split,
        bounds=median_band,
        options=_SPINE_OPTIONS,
    ),
    "forks-only": Method("control: spine without the band", SPINE, policy_mask=top_share, options=_SPINE_OPTIONS),
    "band-only": Method(
        "control: spine's band and KL on the forks, policy term on all tokens",
        SPINE,
        bounds=quantile_band,
        anchor_on_forks=True,
        options=_SPINE_OPTIONS,
    ),
    "random-mask": Method(
        "control: spine's share of tokens at random, no band",
        SPINE,
        signal=random_draw,
        policy_mask=exact_share,
        entropies=False,
        options=_SPINE_OPTIONS,
    ),
    "low-entropy-mask": Method(
        "control: the 80 % of tokens with the lowest entropy, no band",
        "arXiv 2506.01939",
        policy_mask=lowest_share,
        options={**_SPINE_OPTIONS, "share": 0.8},
    ),
    "oracle": Method(
        "control: ttrl with the true labels as reward (--allow-labels)",
        TTRL,
        reward=from_labels,
        signal=token_position,
        entropies=False,
        options=_TTRL_OPTIONS,
        label_free=False,
    ),
    **rows_sampling.ROWS,
}


def find(name: str) -> Method:
    """Return the row of that name. Raises ConfigError naming the nearest valid name."""
    if name not in METHODS:
        raise ConfigError(f"method={name!r}: no such method; {nearest(name, METHODS)}")
    return METHODS[name]


def configure(*layers: Mapping[str, Any]) -> RunConfig:
    """Lay `layers` over the method's own options and validate them; later layers win. Raises ConfigError.

    What only the method's row sets does not count as set in the result (`model_fields_set`), so that `for_method` can
    tell it from what the caller wrote.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, expand_layer(layer))
    section = merged.get("method")
    name = section.get("name", "spine") if isinstance(section, Mapping) else "spine"
    return _over(find(str(name)), merged)


def for_method(config: RunConfig | None, method: str | Method | None) -> tuple[RunConfig, Method]:
    """Return the configuration and the row to run with.

    With a `method`, a name or a row, its own options replace those of `config`'s method. What the caller set in
    `config` wins over both. Raises ConfigError.
    """
    if method is None:
        config = config or configure()
        return config, find(config.method.name)
    given: dict[str, Any] = {} if config is None else config.model_dump(exclude_unset=True)
    if isinstance(method, str):
        return configure(given, {"method": {"name": method}}), find(method)
    return _over(method, given), method


def changed_options(config: RunConfig, method: Method | None = None) -> dict[str, tuple[Any, Any]]:
    """Return key -> (the method's own value, the value in use) where they differ, for keys that the method sets.

    Keys are those of the section `method`, and those of `sampling` that the row sets.
    """
    row = method or find(config.method.name)
    own = build({"method": dict(row.options), "sampling": dict(row.sampling)})
    names = [("method", name) for name in type(own.method).model_fields if name != "name"]
    names += [("sampling", name) for name in row.sampling]
    pairs = {
        f"{section}.{name}": (getattr(getattr(own, section), name), getattr(getattr(config, section), name))
        for section, name in names
    }
    return {key: (usual, used) for key, (usual, used) in pairs.items() if usual != used}


def changed_lines(config: RunConfig, method: Method | None = None) -> list[str]:
    """Return a line for each of `changed_options`: "method.kl=none (the method's own: exact)"."""
    return [
        f"{key}={used} (the method's own: {usual})" for key, (usual, used) in changed_options(config, method).items()
    ]


def _over(row: Method, given: Mapping[str, Any]) -> RunConfig:
    """Lay `given` over the options of `row`."""
    own = {"method": dict(row.options), "sampling": dict(row.sampling)}
    config = build(own, given)
    if row.step_loss is not None and config.optim.epochs > 1:
        raise ConfigError(
            f"optim.epochs={config.optim.epochs}: the loss of method {config.method.name} is of a whole step and known "
            "before its first update only; set optim.epochs=1"
        )
    for name, options in own.items():
        section = given.get(name)
        getattr(config, name).model_fields_set.difference_update(
            options.keys() - (section.keys() if isinstance(section, Mapping) else ())
        )
    return config
