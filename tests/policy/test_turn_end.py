"""The tokens that end a response, whichever file names them."""

from __future__ import annotations

import copy

import pytest
from tiny import END, tiny_model, tiny_processor

from mm_spine.policy.model import Policy
from mm_spine.policy.turn_end import turn_end


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"])
def test_the_template_and_the_tokenizer_know_the_end_without_a_generation_config(kind: str) -> None:
    model = tiny_model(kind=kind)
    model.generation_config.eos_token_id = None
    for config in (model.config, model.config.get_text_config()):
        config.eos_token_id = None
    policy = Policy(model, tiny_processor(kind))
    assert policy.end_ids == (END,)
    assert turn_end(policy.processor, policy.tokenizer) == END


def test_ends_of_all_sources_are_united() -> None:
    model, processor = tiny_model(), copy.deepcopy(tiny_processor())
    model.generation_config.eos_token_id = [7, 10**6]
    model.config.eos_token_id = 9
    processor.tokenizer.eos_token = "<|endoftext|>"
    policy = Policy(model, processor)
    ends = {7, 9, END, processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    assert policy.end_ids == tuple(sorted(ends))
