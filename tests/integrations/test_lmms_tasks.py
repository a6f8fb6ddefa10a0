"""Our benchmarks and folders as lmms-eval tasks: prompts, images and scores of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lmms import DIGITS, needed
from tiny import tiny_image, tiny_policy

from mm_spine import files
from mm_spine.integrations import lmms_tasks


@needed
def test_a_chat_has_the_prompt_and_images_of_its_question(harness: Any, folder: Path, tmp_path: Path) -> None:
    (task,) = lmms_tasks.write_tasks(str(folder), tmp_path)
    policy = tiny_policy()
    for doc in files.read_json_lines(tmp_path / f"{task}.jsonl"):
        question = lmms_tasks.question_of(doc)
        chat = harness.question_of(lmms_tasks.doc_to_messages(doc), "q", question.spec)
        one, other = policy.prompt(question), policy.prompt(chat)
        assert one.image_keys == other.image_keys
        assert one.ids_L.tolist() == other.ids_L.tolist()


def test_models_that_take_images_apart_get_them_in_order_and_marks_in_the_text(folder: Path, tmp_path: Path) -> None:
    (task,) = lmms_tasks.write_tasks(str(folder), tmp_path, prompt="verbatim")
    doc, choice, turned, _ = files.read_json_lines(tmp_path / f"{task}.jsonl")
    assert lmms_tasks.doc_to_text(doc) == "Is <image> like\n\n<image>, image 1?"
    assert lmms_tasks.doc_to_text(choice) == "Which?\n(A) one\n(B) two"
    assert [image.size for image in lmms_tasks.doc_to_visual(doc)] == [tiny_image(0).size, tiny_image(1).size]
    assert lmms_tasks.doc_to_visual(turned)[0].size == tiny_image(5).size[::-1] != tiny_image(5).size


def test_the_shipped_tasks_are_those_of_the_embedded_benchmark(tmp_path: Path) -> None:
    names = lmms_tasks.write_tasks("digits", tmp_path)
    assert names == [DIGITS, "mm_spine_digits_held_out"]
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in lmms_tasks.SHIPPED.iterdir())
    assert all((tmp_path / name).read_bytes() == (lmms_tasks.SHIPPED / name).read_bytes() for name in written)


def test_a_task_is_asked_as_the_benchmarks_configuration_says(tmp_path: Path) -> None:
    assert lmms_tasks.config_of("slake").evaluation.max_new_tokens == 2048
    assert lmms_tasks.config_of("a/folder").evaluation.max_new_tokens == 1024
    assert "max_new_tokens: 48\n" in (lmms_tasks.SHIPPED / f"{DIGITS}.yaml").read_text()
    lmms_tasks.write_tasks("digits", tmp_path, splits=["tune"], max_new_tokens=7)
    assert "max_new_tokens: 7\n" in (tmp_path / "mm_spine_digits_tune.yaml").read_text()


def test_scores_are_those_of_our_graders_and_a_question_without_gold_has_none() -> None:
    doc = files.read_json_lines(lmms_tasks.SHIPPED / f"{DIGITS}.jsonl")[0]
    assert lmms_tasks.process_results(doc, ["So \\boxed{4}."]) == {"score": 1.0, "unparsed": 0.0}
    assert lmms_tasks.process_results(doc, ["So \\boxed{5}."]) == {"score": 0.0, "unparsed": 0.0}
    assert lmms_tasks.process_results({**doc, "answer": []}, ["I cannot say."]) == {"unparsed": 1.0}


def test_a_question_that_is_gone_is_named() -> None:
    doc = files.read_json_lines(lmms_tasks.SHIPPED / f"{DIGITS}.jsonl")[0]
    with pytest.raises(ValueError, match="'digits/adapt/9999' is no longer there; write the tasks again"):
        lmms_tasks.question_of({**doc, "id": "digits/adapt/9999"})


def test_the_writer_prints_names_and_refuses_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lmms_tasks.main(["digits", "--output", str(tmp_path), "--split", "adapt"])
    assert capsys.readouterr().out == f"{DIGITS}\n"
    with pytest.raises(SystemExit) as ended:
        lmms_tasks.main(["digitz", "--output", str(tmp_path)])
    assert ended.value.code == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
