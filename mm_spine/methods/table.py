"""The methods: one row each, here or in a module `rows_*`.

The trainer never asks for a method's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm_spine.config import ConfigError, MethodConfig, RunConfig
from mm_spine.config.layers import build, expand_layer, merge
from mm_spine.methods import rows_credit, rows_loss, rows_sampling, rows_scored, rows_tokens
from mm_spine.methods.choices import (
    exact_share,
    from_labels,
    lowest_share,
    median_band,
    negative_entropy,
    otsu_split,
    quantile_band,
    random_draw,
    top_share,
)
from mm_spine.methods.method import NO_ENTROPIES, NORMALISED, TTRL_KL, Method, chain, rule
from mm_spine.methods.sections import EarConfig, RentConfig
from mm_spine.words import PLUGIN_HINT, nearest

TTRL = "arXiv 2504.16084"
ETTRL = "arXiv 2508.11356"
SPINE = "arXiv 2511.17938"
_SPINE_OPTIONS = {"kl": "exact", "kl_weight": 0.01}
# Equations 2 and 3 of ETTRL: the population's standard deviation, and each response averaged over its own tokens.
_ETTRL_OPTIONS = {
    **TTRL_KL,
    "std": "population",
    "policy_denominator": "response",
    "kl_denominator": "response",
}

# Formulas are plain text, a line a step. pi_0 is the starting model, H_t the entropy of token t in nats.
_ADVANTAGE = "A_i = (r_i - mean r) / (std r + eps) within the group of a question"
_VOTED = f"r_i = 1 if answer i is the winner of the vote, else 0\n{_ADVANTAGE}"
_PPO = "L = -mean_t g_t, g_t = min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i), rho_t = pi / pi_old"
_K3 = "  + kl_weight mean_t (exp d_t - 1 - d_t), d_t = log pi_0 - log pi"
_FORKED = "L = -mean_t m_t g_t, g_t = min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i), rho_t = pi / pi_old"
_EXACT = "  + kl_weight mean over the tokens with m_t = 1 of KL(pi || pi_0), exact over the vocabulary"
_SPINE = f"{_FORKED}\n{_EXACT}"
_TOP = "m_t = 1 if H_t >= the quantile 1 - share of the response's token entropies, else 0"
_HINGES = "  + mean_t m_t (band_low_weight max(0, low - H_t) + band_high_weight max(0, H_t - high))"
_QUANTILES = "  low, high = the quantiles 0.10 and 0.50 (band_quantiles) of the response's H_t with m_t = 1"
_EAR = """\
adv_res:  A_i <- clip(Y_i, 0.8, 1.2) A_i, Y_i = 1 + (mean_j h_j - h_i) / mean_j h_j, h_i the mean of H_t
adv_clip: A_i <- clip(A_i, -2, 2)
L as in ttrl, each response averaged over its own tokens first"""
_UNSAID = "Responses without an answer, or cut off before one, do not vote and earn 0; ties go by a hash of the answer."
_SPINE_UNSAID = (
    "Clip range, KL weight and hinge weights are not published: those of an independent implementation. "
    f"Training samples with top-p 1. {_UNSAID}"
)
_TTRL_REPORTED = (
    "Qwen2.5-Math-1.5B 30.2 to 66.4 % on MATH-500, 10.0 to 16.7 on AIME25; Qwen2.5-VL-3B 26.2 to 30.0 on SLAKE, 19.7 "
    "to 22.7 on MathVision (pass@1, arXiv 2511.17938)."
)
_SPINE_REPORTED = (
    "Against ttrl: Qwen2.5-VL-3B 38.7 against 30.0 % on SLAKE, 27.3 against 22.7 on MathVision; Qwen2.5-Math-1.5B 77.0 "
    "against 66.4 on MATH-500; less with Qwen3-1.7B, 81.4 against 79.9 on MATH-500 (pass@1, arXiv 2511.17938)."
)
_EAR_REPORTED = (
    "Qwen2.5-Math-1.5B on MATH-500 77.3 % with adv_res and with adv_clip, 73.0 with ttrl; on AIME24 19.6 and 19.4, "
    "15.8 with ttrl (pass@1, arXiv 2508.11356)."
)
_ETMR_REPORTED = (
    "Tree rollouts alone, Qwen2.5-Math-1.5B: 76.9 % on MATH-500, 73.0 with ttrl; 21.0 on AIME24, 15.8 with ttrl; 50.8 "
    "on AMC, 48.9 with ttrl (pass@1, arXiv 2508.11356)."
)
_LOW_REPORTED = (
    "With labels, training on the 80 % of tokens with the lowest entropy makes a model worse than training on all "
    "(arXiv 2506.01939)."
)


_EAR_CREDIT = chain(NORMALISED, rule("credit", "entropy_shaped"))

METHODS: dict[str, Method] = {
    "none": Method("no adaptation: the base model and its vote", "-", "no step: pi = pi_0", trains=False),
    "ttrl": Method(
        "majority reward, all tokens",
        TTRL,
        f"{_VOTED}\n{_PPO}\n{_K3}",
        f"The sample's standard deviation, as verl and TRL have it. {_UNSAID}",
        _TTRL_REPORTED,
        **NO_ENTROPIES,
        options=TTRL_KL,
    ),
    "ttrl-ear": Method(
        "ttrl with entropy-shaped advantages (method.ear: adv_res | adv_clip)",
        ETTRL,
        f"{_VOTED}\n{_EAR}",
        f"Y_i is that of the paper's equation; its prose says the opposite in one place. {_UNSAID}",
        _EAR_REPORTED,
        credit=_EAR_CREDIT,
        section=EarConfig,
        options=_ETTRL_OPTIONS,
    ),
    "ettrl": Method(
        "tree rollouts (ETMR) with entropy-shaped advantages (method.ear: adv_res | adv_clip)",
        ETTRL,
        "M roots; B branches from each of the N tokens of a root with the largest -log pi: M (1 + B N) responses vote\n"
        f"{_VOTED}\n{_EAR}",
        f"Forks lie on roots only (Algorithm 1); flat responses make up for a root too short for N forks. {_UNSAID}",
        _ETMR_REPORTED,
        credit=_EAR_CREDIT,
        section=EarConfig,
        options=_ETTRL_OPTIONS,
        sampling={"tree": {}},
    ),
    "rent": Method(
        "reward of low entropy instead of a vote (RENT)",
        "arXiv 2505.22660",
        f"r_i = -mean_t H_t in nats, or -unparsed_penalty for a response without an answer\n{_ADVANTAGE}\n{_PPO}",
        "Advantages normalised within the group, and no KL term.",
        "Without labels: better on GSM8K, MATH500, AMC, AIME and GPQA with Qwen and Mistral models; what "
        "helps most is low entropy near the end of the response (arXiv 2505.22660).",
        reward=negative_entropy,
        section=RentConfig,
    ),
    "spine": Method(
        "forking tokens (top 20 % entropy) with a quantile band (v1)",
        SPINE,
        f"{_VOTED}\n{_TOP}\n{_SPINE}\n{_HINGES}\n{_QUANTILES}",
        _SPINE_UNSAID,
        _SPINE_REPORTED,
        policy_mask=top_share,
        bounds=quantile_band,
        options=_SPINE_OPTIONS,
    ),
    "spine-v2": Method(
        "forking tokens (Otsu) with a median/MAD band (v2)",
        SPINE,
        f"{_VOTED}\nm_t = 1 if H_t >= Otsu's threshold of the response's token entropies (100 bins), else 0\n"
        f"{_SPINE}\n{_HINGES}\n"
        "  high = c, the median of the response's H_t with m_t = 1; low = max(0, c - max(1.4826 MAD, 1e-6))",
        _SPINE_UNSAID,
        policy_mask=otsu_split,
        band_mask=otsu_split,
        bounds=median_band,
        options=_SPINE_OPTIONS,
    ),
    "forks-only": Method(
        "control: spine without the band",
        SPINE,
        f"{_VOTED}\n{_TOP}\n{_SPINE}",
        _SPINE_UNSAID,
        policy_mask=top_share,
        options=_SPINE_OPTIONS,
    ),
    "band-only": Method(
        "control: spine's band and KL on the forks, policy term on all tokens",
        SPINE,
        f"{_VOTED}\n{_TOP}\n{_PPO}\n{_EXACT}\n{_HINGES}\n{_QUANTILES}",
        _SPINE_UNSAID,
        bounds=quantile_band,
        anchor_on_forks=True,
        options=_SPINE_OPTIONS,
    ),
    "random-mask": Method(
        "control: spine's share of tokens at random, no band",
        SPINE,
        f"{_VOTED}\nm_t = 1 for ceil(share T) tokens of the response, drawn at random, else 0\n{_SPINE}",
        f"Equal responses to a question have equal masks. {_SPINE_UNSAID}",
        signal=random_draw,
        policy_mask=exact_share,
        entropies=False,
        options=_SPINE_OPTIONS,
    ),
    "low-entropy-mask": Method(
        "control: the 80 % of tokens with the lowest entropy, no band",
        "arXiv 2506.01939",
        f"{_VOTED}\nm_t = 1 if H_t <= the quantile share of the response's token entropies, else 0\n{_SPINE}",
        f"Quantiles of each response, with the KL of spine. {_SPINE_UNSAID}",
        _LOW_REPORTED,
        policy_mask=lowest_share,
        options={**_SPINE_OPTIONS, "share": 0.8},
    ),
    "oracle": Method(
        "control: ttrl with the true labels as reward (--allow-labels)",
        TTRL,
        f"r_i = 1 if answer i is correct by the labels, else 0\n{_ADVANTAGE}\n{_PPO}\n{_K3}",
        "It reads the labels: a bound to compare label-free methods with.",
        reward=from_labels,
        **NO_ENTROPIES,
        options=TTRL_KL,
        label_free=False,
    ),
    **rows_credit.ROWS,
    **rows_loss.ROWS,
    **rows_tokens.ROWS,
    **rows_scored.ROWS,
    **rows_sampling.ROWS,
}


def find(name: str) -> Method:
    """Return the row of that name. Raises ConfigError naming the nearest valid name."""
    if name not in METHODS:
        raise ConfigError(f"method={name!r}: no such method; {nearest(name, METHODS)}; {PLUGIN_HINT}")
    return METHODS[name]


def register_method(name: str, row: Method) -> None:
    """Add a method. Raises ConfigError where the name is taken or the row's options are not valid, TypeError for what
    is no `Method`."""
    if not isinstance(row, Method):
        raise TypeError(f"register_method({name!r}, ...) takes a Method, found {type(row).__name__}")
    if name in METHODS:
        raise ConfigError(f"method {name!r} exists already; choose another name")
    _over(row, {"method": {"name": name}})
    METHODS[name] = row


def own_options(row: Method) -> list[str]:
    """Return the options that the row's section adds to those of all methods."""
    return [key for key in row.section.model_fields if key not in MethodConfig.model_fields]


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
        row = find(config.method.name)
        if not isinstance(config.method, row.section):
            # A section that was made without `configure` lacks the method's own options.
            section = row.section.model_validate(config.method.model_dump(exclude_unset=True))
            config = config.model_copy(update={"method": section})
        _check_step_loss(row, config)
        return config, row
    given: dict[str, Any] = {} if config is None else config.model_dump(exclude_unset=True)
    if isinstance(method, str):
        return configure(given, {"method": {"name": method}}), find(method)
    # A row has no name of its own; a registered one goes by that.
    names = [name for name, row in METHODS.items() if row is method]
    return _over(method, merge(given, {"method": {"name": names[0]}}) if names else given), method


def changed_options(config: RunConfig, method: Method | None = None) -> dict[str, tuple[Any, Any]]:
    """Return key -> (the method's own value, the value in use) where they differ, for keys that the method sets.

    Keys are those of the section `method`, and those of `sampling` that the row sets.
    """
    row = method or find(config.method.name)
    own = build({"method": dict(row.options), "sampling": dict(row.sampling)}, method=row.section)
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
    config = build(own, given, method=row.section, others=_only_others_have(row))
    _check_step_loss(row, config)
    for name, options in own.items():
        section = given.get(name)
        getattr(config, name).model_fields_set.difference_update(
            options.keys() - (section.keys() if isinstance(section, Mapping) else ())
        )
    return config


def _check_step_loss(row: Method, config: RunConfig) -> None:
    """Raise ConfigError where a loss of the whole step would miss later epochs or responses of earlier steps."""
    if row.step_loss is not None and config.optim.epochs > 1:
        raise ConfigError(
            f"optim.epochs={config.optim.epochs}: the loss of method {config.method.name} is of a whole step and known "
            "before its first update only; set optim.epochs=1"
        )
    if row.step_loss is not None and row.replay is not None:
        raise ConfigError(
            f"method {config.method.name}: a loss of the whole step knows no responses of earlier steps; leave out "
            "step_loss or replay"
        )


def _only_others_have(row: Method) -> dict[str, list[str]]:
    """Return the options that the row lacks and other methods have of their own -> the names of these methods."""
    having: dict[str, list[str]] = {}
    for name, other in METHODS.items():
        for key in own_options(other):
            if key not in row.section.model_fields:
                having.setdefault(key, []).append(name)
    return having
