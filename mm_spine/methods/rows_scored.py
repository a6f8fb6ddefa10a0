"""Rows whose reward needs another forward: of the policy over further tokens, or of another model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mm_spine.config import ConfigError
from mm_spine.methods.method import NO_ENTROPIES, TTRL_KL, Method, rule
from mm_spine.methods.sections import ClipConfig, LikelihoodConfig


def check_clip(options: ClipConfig) -> None:
    """Raise ConfigError where `method.clip` is no folder of a CLIP model."""
    if options.clip is None:
        raise ConfigError(f"method {options.name} needs a CLIP model: set method.clip to its folder")
    config = options.clip / "config.json"
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"method.clip={options.clip}: no readable config.json; give a CLIP's folder") from None
    if kind != "clip":
        raise ConfigError(f"method.clip={options.clip}: its model_type is {kind!r}, not clip; give a CLIP's folder")


def clip_folder(options: ClipConfig) -> list[Path]:
    """Return the folder that `rlcf` reads."""
    return [] if options.clip is None else [options.clip]


_PPO = "L = -mean_t g_t, g_t = min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i), rho_t = pi / pi_old"

ROWS: Mapping[str, Method] = {
    "likelihood": Method(
        "reward: the log-probability of the voted answer after the response's own reasoning",
        "arXiv 2506.18254, 2602.03979",
        "o_i = reasoning z_i, answer y_i; y* = the winner of the vote\n"
        "r_i = max(log pi(y* | q, z_i), -floor) in nats, or with likelihood=mean_prob the mean of pi over y*'s tokens\n"
        f"A_i = (r_i - mean r) / (std r + eps) within the group of a question\n{_PPO}\n"
        "  + kl_weight mean_t (exp d_t - 1 - d_t), d_t = log pi_0 - log pi",
        "The vote stands for the reference answer of both papers. z_i ends at the last literal mention of the "
        'answer of the response, else after it and the words "The answer is". The token after y* counts too. Floor 7 '
        "nats, also for a response without an answer; eps 0.01, so that rounding is no preference. RLPR subtracts the "
        "probability of y* without reasoning, which the group's mean cancels; its filter by the standard deviation is "
        "left out.",
        "With reference answers, not with votes: log-probability does as well as right-or-wrong rewards in "
        "mathematics and is the only likelihood that holds for long answers, where probabilities vanish "
        "(arXiv 2602.03979). The paper sees responses get shorter.",
        asks=rule("likelihood", "voted_asks"),
        reward=rule("likelihood", "likelihood_reward"),
        **NO_ENTROPIES,
        section=LikelihoodConfig,
        options={**TTRL_KL, "eps": 0.01},
    ),
    "rlcf": Method(
        "reward: CLIP's similarity of image and answer (method.clip)",
        "arXiv 2305.18010 (RLCF)",
        "r_i = 2.5 max(cos(CLIP(image), CLIP(answer i)), 0)\nA_i = r_i - mean r within the group of a question\n"
        + _PPO,
        "The parsed answer is what CLIP reads (the paper: class names and captions). A response without an answer, and "
        "every response to a question without an image, earns 0; of several images the mean counts. One CLIP, no "
        "ensemble, no momentum buffer; the weights adapt to all questions instead of each alone.",
        "Reported for classification, retrieval and captions, where CLIP knows what is shown (arXiv 2305.18010). "
        "Nothing is known for answers that CLIP cannot see, such as numbers and letters of choices.",
        judge=rule("clip_reward", "clip_judge"),
        reward=rule("clip_reward", "clip_reward"),
        **NO_ENTROPIES,
        check=check_clip,
        reads=clip_folder,
        section=ClipConfig,
        options={"advantage": "center"},
    ),
}
