"""Prompts of a user's folder: what is added to them, and what is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mm_spine.benchmarks import resolve
from mm_spine.benchmarks.folder import load_table
from mm_spine.benchmarks.own_prompts import holds_request, request, without_request, write_prompt
from mm_spine.types import AnswerSpec

CT = ("CT", "MRI")


@pytest.mark.parametrize(
    "prompt",
    [
        "What is 2 + 2? Put it in \\boxed{}.",
        "Is it broken? Answer with yes or no.",
        "Is it broken? Answer yes or no.",
        "Is it broken?\nPlease answer the question using a single word.",
        "Which organ? Reply only with its name.",
        "Look at the image, then answer in one sentence: which organ?",
        "Think step by step. Which organ?",
        "Which organ? Write only its name.",
        "Which organ? Give your final answer as one word.",
        "Which letter is shown? Your answer must be a capital letter.",
        "Ist der Knochen gebrochen? Antworte mit ja oder nein.",
        "L'os est-il cassé ? Répondez par oui ou non.",
        "¿Está roto? Responda con sí o no.",
        "骨折了吗？请用是或否回答。",
        "哪个器官？直接回答字母即可。",
    ],
)
def test_a_request_is_known_by_its_words(prompt: str) -> None:
    assert holds_request(prompt)
    assert write_prompt(prompt, AnswerSpec("yes_no"), "reason") == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "Is there a fracture?",
        "Does the knee respond with pain?",
        "Which is the answer with the most votes in this chart?",
        "What does the sign say the answer is?",
        "How many steps are there?",
        "Who wrote the letter in the picture?",
        "Was zeigt das Bild?",
        "图中最大的器官是什么？",
    ],
)
def test_a_question_alone_gets_one(prompt: str) -> None:
    assert not holds_request(prompt)
    asked = write_prompt(prompt, AnswerSpec("text"), "reason")
    assert asked == f"{prompt}\nThink step by step, then give a short final answer in \\boxed{{}}."
    assert write_prompt(asked, AnswerSpec("text"), "reason") == asked, "never a second one"


def test_requests_suit_the_kind_and_the_style() -> None:
    question = "What is shown?"
    for kind, style, words in (
        ("yes_no", "reason", "yes or no in \\boxed{}"),
        ("integer", "short", "the number alone"),
        ("medical", "short", "single word or phrase"),
        ("math", "reason", "the final answer in"),
    ):
        asked = write_prompt(question, AnswerSpec(kind), style)
        assert asked.startswith(f"{question}\n") and words in asked
        assert without_request(asked, AnswerSpec(kind)) == question
    assert write_prompt(question, AnswerSpec("yes_no"), "verbatim") == question
    assert request(AnswerSpec("yes_no"), "verbatim") == ""


def test_a_request_for_a_letter_comes_with_letters() -> None:
    spec = AnswerSpec("choice", CT)
    letter = "Answer with the letter of the right option alone."
    listed = "(A) CT\n(B) MRI"
    assert write_prompt("Is it CT or MRI?", spec, "short") == f"Is it CT or MRI?\n{listed}\n{letter}"
    for shown in ("Which?\n(A) CT (B) MRI", "Which? A. CT B. MRI", "Which?\nA: CT\nB: MRI"):
        assert write_prompt(shown, spec, "short") == f"{shown}\n{letter}"
    assert write_prompt("Is it CT or MRI?", spec, "verbatim") == "Is it CT or MRI?"
    assert write_prompt("What is it?", spec, "verbatim") == f"What is it?\n{listed}"
    assert write_prompt("What is it? Answer with a letter.", spec, "short") == (
        f"What is it? Answer with a letter.\n{listed}"
    )


def test_a_folder_says_once_what_it_adds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "Is it red?", "kind": "yes_no"}, {"prompt": "Is it red? Answer yes or no.", "kind": "yes_no"}]
    for name in ("questions", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = resolve(str(tmp_path))
    with caplog.at_level(logging.INFO):
        first, second = benchmark.load("adapt").questions
        benchmark.load("held_out")
    assert first.prompt == "Is it red?\nThink step by step, then give yes or no in \\boxed{}."
    assert second.prompt == "Is it red? Answer yes or no."
    (said,) = (message for message in caplog.messages if "end with a request" in message)
    assert "1 of 2 prompts" in said and "prompt=verbatim" in said
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert [q.prompt for q in benchmark.load("adapt", prompt="verbatim").questions] == [r["prompt"] for r in rows]
    assert not caplog.messages


def test_the_style_does_not_change_how_answers_are_read(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Which organ is largest?", "kind": "text"}\n')
    (asked,), (plain,) = (load_table(tmp_path, style=style).questions for style in ("reason", "verbatim"))
    assert asked.spec == plain.spec and asked.id == plain.id and asked.prompt != plain.prompt
