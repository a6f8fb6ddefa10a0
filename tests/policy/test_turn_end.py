"""The tokens that end a response, whichever file names them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from families import KINDS
from tiny import END, tiny_model, tiny_policy, tiny_processor
from transformers import AutoTokenizer

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.policy.model import Policy
from mm_spine.policy.turn_end import turn_end
from mm_spine.processors.chat import encode_text
from mm_spine.types import AnswerSpec, Question


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("gemma3")])
def test_the_template_and_the_tokenizer_know_the_end_without_a_generation_config(kind: str) -> None:
    model = tiny_model(kind=kind)
    model.generation_config.eos_token_id = None
    for config in (model.config, model.config.get_text_config()):
        config.eos_token_id = None
    policy = Policy(model, tiny_processor(kind))
    assert policy.end_ids == (END,)
    assert turn_end(policy.processor, policy.tokenizer) == END


# The forms of Llama 3's, Mistral's and Gemma 3's templates, shortened; token names from their `tokenizer_config.json`.
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def tokenizer_with(template: str, bos: str, eos: str, *others: str) -> Any:
    """The shipped tokenizer with special tokens of another family, and its template."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, bos_token=bos, eos_token=eos)
    tokenizer.add_special_tokens({"additional_special_tokens": list(others)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "end", "prompt"),
    [
        (
            ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|eot_id|>",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nAdd.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>[INST] Add.[/INST]"),
    ],
    ids=["llama", "mistral"],
)
def test_the_templates_of_text_models_begin_once_and_end_their_turn(
    tokenizer: tuple[str, ...], end: str, prompt: str
) -> None:
    made = tokenizer_with(LLAMA_3 if "<|eot_id|>" in tokenizer else MISTRAL, *tokenizer)
    assert turn_end(made, made) == made.convert_tokens_to_ids(end)
    encoded = encode_text(Question("q", (), "Add.", AnswerSpec("integer")), made)
    assert made.decode(encoded.ids_L.tolist()) == prompt


@pytest.mark.parametrize("kind", ["gemma3", "gemma3_text"])
def test_gemma_ends_its_turn_with_a_token_of_its_own(kind: str) -> None:
    policy = tiny_policy(kind=kind)
    end = policy.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert turn_end(policy.processor, policy.tokenizer) == end
    assert end in policy.end_ids
    ids = policy.prompt(Question("q", (), "Add.", AnswerSpec("integer"))).ids_L
    begin = policy.tokenizer.convert_tokens_to_ids("<bos>")
    assert (ids == begin).nonzero()[:, 0].tolist() == [0], "the template's own, and no second one"


def test_ends_of_all_sources_are_united() -> None:
    model, processor = tiny_model(), copy.deepcopy(tiny_processor())
    model.generation_config.eos_token_id = [7, 10**6]
    model.config.eos_token_id = 9
    processor.tokenizer.eos_token = "<|endoftext|>"
    policy = Policy(model, processor)
    ends = {7, 9, END, processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    assert policy.end_ids == tuple(sorted(ends))
