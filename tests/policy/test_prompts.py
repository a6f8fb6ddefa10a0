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
