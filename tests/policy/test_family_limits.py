"""What a family cannot do here is said by name, and what it can do is exact up to the last token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import MERGER, VISION, ask
from tiny import TINY_CONFIGS, entropy, plain_log_probs, tiny_model, tiny_policy, tiny_processor, tiny_questions

from mm_spine.config import DecodingConfig, ModelConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import ModelError
from mm_spine.policy.families import FAMILIES
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, pack
from mm_spine.sampling.hf import HFSampler

WINDOWED = tuple(kind for kind in FAMILIES if FAMILIES[kind].window(TINY_CONFIGS[kind](True).get_text_config()))


def windowed(kind: str, window: int | None) -> Policy:
    model = tiny_model(1, kind=kind)
    model.config.get_text_config().sliding_window = window
    return Policy(model, tiny_processor(kind))


def test_the_families_with_a_window() -> None:
    assert WINDOWED == ("gemma3", "mistral", "gemma3_text")


@pytest.mark.parametrize("kind", WINDOWED)
def test_the_context_ends_with_the_window(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    question = tiny_questions(1, 0)[0]
    length = len(tiny_policy(kind=kind).prompt(question).ids_L)
    policy = windowed(kind, length + 5)
    assert policy.context == length + 5
    assert policy.can_ask(question, 5) and not policy.can_ask(question, 6)
    assert f"its prompt of {length} tokens and 6 new ones do not fit in the model's context of {length + 5}" in (
        caplog.text
    )
    assert f"each token sees {length + 5} tokens" in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("kind", WINDOWED)
def test_within_its_window_a_model_is_exact_and_one_token_later_it_would_not_be(kind: str) -> None:
    """The last token of a response that fills the window, by the packed forward and by the sampler."""
    question = tiny_questions(1, 0)[0]
    length = len(tiny_policy(kind=kind).prompt(question).ids_L)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 415, 9))

    def error(window: int) -> float:
        policy = windowed(kind, window)
        leaf = Branches(policy.prompt(question), [tokens], [torch.ones(9, dtype=torch.bool)])
        found = policy.text(pack([leaf]), Distribution(0.7, policy.banned)).stats
        plain = tiny_model(1, kind=kind)
        plain.config.get_text_config().sliding_window = window
        for layer in getattr(plain.model, "language_model", plain.model).layers:
            if getattr(layer.self_attn, "sliding_window", None) is not None:
                layer.self_attn.sliding_window = window
        expected = plain_log_probs(plain, question, tokens.tolist())
        own = expected.gather(-1, tokens[:, None])[:, 0]
        return float((found.logp_NT[0] - own).abs().max() + (found.entropy_NT[0] - entropy(expected)).abs().max())

    # The last token predicts nothing, so a response of nine reads the prompt and eight tokens of its own.
    assert error(length + 8) < 1e-4
    assert error(length + 7) > 1e-4


def test_a_model_without_a_window_has_all_its_positions() -> None:
    policy = windowed("mistral", None)
    assert policy.context == policy.text.language_model.config.max_position_embeddings


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_embeddings_that_depend_on_the_length_of_a_call_are_refused(kind: str) -> None:
    model = tiny_model(kind="llama")
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": kind}
    with pytest.raises(ModelError, match=rf"model \(llama\): rope_type='{kind}' turns positions by the length"):
        Policy(model, tiny_processor("llama"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0), ("use_bidirectional_attention", True)],
)
def test_what_gemma_does_not_use_is_refused(key: str, value: float) -> None:
    model = tiny_model(kind="gemma3")
    setattr(model.config.text_config, key, value)
    with pytest.raises(ModelError, match=rf"model \(gemma3\): {key}={value} in its text_config is not computed here"):
        Policy(model, tiny_processor("gemma3"))


@pytest.mark.parametrize("kind", [kind for kind in VISION if not FAMILIES[kind].mergers])
def test_a_projector_of_tiles_does_not_train(kind: str) -> None:
    with pytest.raises(ModelError, match=rf"train_merger: a model of type {kind} has no merger that can be trained"):
        tiny_policy(config=MERGER, kind=kind)


@pytest.mark.parametrize("kind", VISION)
def test_no_response_holds_a_vision_token(kind: str) -> None:
    """Their embeddings make them the likeliest of all; none is drawn."""
    policy = tiny_policy(config=ModelConfig(), tied=False, kind=kind)
    ids = [policy.tokenizer.convert_tokens_to_ids(token) for token in FAMILIES[kind].vision_tokens]
    assert policy.banned == tuple(sorted(ids))
    with torch.no_grad():
        policy.text.head.weight[ids] *= 30
    (row,) = HFSampler(policy, DecodingConfig(max_new_tokens=20)).sample(ask(kind, (1,)), 8, step=0, purpose="test")
    assert not {token for rollout in row for token in rollout.token_ids} & set(ids)


@torch.no_grad()
@pytest.mark.parametrize("kind", VISION)
def test_features_of_an_image_do_not_depend_on_the_images_beside_it(kind: str) -> None:
    """So they can be computed once; an image that stands alone may be cut otherwise, and is another entry."""
    policy = tiny_policy(kind=kind)
    question = ask(kind, (3,))[0]
    together = policy.prompt(question)
    others = [replace(question, id=str(i), images=question.images[i:] + question.images[:i]) for i in (1, 2)]
    prompts = [policy.prompt(other) for other in others]
    assert all(set(prompt.image_keys) == set(together.image_keys) for prompt in prompts)
    assert policy.images.tower_runs == 3
    assert not torch.equal(prompts[0].features_ID, together.features_ID)
    alone = policy.prompt(replace(question, id="alone", images=question.images[:1]))
    assert (alone.image_keys[0] in together.image_keys) == (kind != "llava_onevision")
