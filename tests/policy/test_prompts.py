"""Which questions share an encoded prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tiny import tiny_image, tiny_policy, tiny_questions


def test_a_copy_of_a_question_has_its_prompt_and_another_content_has_not(tmp_path: Path) -> None:
    """Under one id: a held-out question, or the next visitor's."""
    policy, question = tiny_policy(), tiny_questions(1)[0]
    prompt = policy.prompt(question)
    assert policy.prompt(replace(question)) is prompt
    assert policy.prompt(replace(question, prompt="Another?")) is not prompt
    assert policy.prompt(replace(question, images=(tiny_image(1),))) is not prompt
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(paths):
        tiny_image(seed).save(path)
    kinds = [lambda path: path, str, Path.read_bytes]
    for kind in kinds:
        one, same, other = (policy.prompt(replace(question, images=(kind(path),))) for path in (*paths[:1], *paths))
        assert one is same is not other


def test_a_forgotten_question_is_encoded_again() -> None:
    policy, question = tiny_policy(), tiny_questions(1)[0]
    prompt = policy.prompt(question)
    policy.forget(replace(question))
    assert policy.prompt(question) is not prompt


def test_a_prompt_that_cannot_fit_is_skipped_without_being_tokenised() -> None:
    policy = tiny_policy()
    policy.family = replace(policy.family, encode=broken)
    question = replace(tiny_questions(1)[0], id="long\n", prompt="a long one " * 90_000)
    assert not policy.can_ask(question)
    assert policy.skipped["long\n"].startswith(r"long\n: its prompt of 990,000 characters has at least ")
    assert policy.skipped["long\n"].endswith(f"does not fit in the model's context of {policy.context}; shorten it")


def broken(*_: object) -> None:
    raise AssertionError("it was tokenised")


def test_the_reason_for_skipping_a_question_is_one_line_whatever_its_id() -> None:
    policy = tiny_policy()
    question = replace(tiny_questions(1)[0], id="a\n\x1b[2J\x00")
    assert not policy.can_ask(question, policy.context)
    assert policy.skipped[question.id].startswith(r"a\n\x1b[2J\x00: its prompt of ")
