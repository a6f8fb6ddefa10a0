"""What `mm-spine benchmarks` prints: every benchmark, and of one its counts and its first rows as a model gets them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Command, refused
from PIL import Image
from tiny import tiny_processor

from mm_spine.benchmarks import BENCHMARKS, digits, resolve
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.commands.preview import QWEN_PIXELS, PromptReader, facts, missing, prompt_reader, render_prompt, row_lines
from mm_spine.processors.chat import encode
from mm_spine.processors.vision import BadQuestion
from mm_spine.types import AnswerSpec, LabelledSet, Question
from mm_spine.words import visible

TEXT = AnswerSpec("text")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three questions: 100 x 60 pixels in a choice, two images, and a file that is no image."""
    folder = tmp_path / "ward"
    folder.mkdir()
    Image.new("RGB", (100, 60)).save(folder / "a.png")
    Image.new("RGB", (56, 28)).save(folder / "b.png")
    (folder / "broken.png").write_bytes(b"no image")
    rows = [
        {"id": "one", "image": "a.png", "prompt": "Which side?", "choices": ["left", "right"], "answer": "B"},
        {"id": "two", "images": ["a.png", "b.png"], "prompt": "Compare <image2> with <image1>.\u001b[31m"},
        {"id": "three", "image": "broken.png", "prompt": "What is it?", "answer": ["scan", "x-ray"]},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def reader() -> PromptReader:
    return PromptReader(tiny_processor(), *QWEN_PIXELS)


def test_every_benchmark_is_listed_with_kind_split_and_licence(command: Command) -> None:
    ended = command("benchmarks")
    assert ended.code == 0
    words = " ".join(ended.out.replace("│", " ").split())
    for name, benchmark in BENCHMARKS.items():
        assert name in words and benchmark.kind in words and benchmark.licence.split()[0] in words
        assert benchmark.source is None or benchmark.source.hub in words


def test_the_prompt_is_what_the_model_gets(reader: PromptReader) -> None:
    question = digits.load("adapt").questions[0]
    row = render_prompt(question, reader)
    tokens = encode(question, reader.processor, *QWEN_PIXELS).ids_L.tolist()
    pad = reader.processor.image_token
    assert row.prompt.replace(f"{pad} x {row.image_tokens}", pad * row.image_tokens) == reader.processor.decode(tokens)
    assert row.text_tokens + row.image_tokens == len(tokens)
    assert row.image_tokens == row.images[0].resized[0] * row.images[0].resized[1] // 28**2


def test_sizes_are_before_and_after_the_pixel_limits(reader: PromptReader) -> None:
    question = Question("q", (Image.new("RGB", (1000, 500)),), "What?", TEXT)
    assert render_prompt(question, reader).images == (((1000, 500), (1008, 504), 0),)
    small = render_prompt(question, reader._replace(max_pixels=50176))
    assert small.images[0].original == (1000, 500)
    assert small.images[0].resized[0] * small.images[0].resized[1] <= 50176


def test_images_are_told_apart_where_the_prompt_names_them_in_another_order(reader: PromptReader) -> None:
    images = (Image.new("RGB", (112, 112)), Image.new("RGB", (280, 56)))
    row = render_prompt(Question("q", images, "Compare <image2> with <image1>.", TEXT), reader)
    assert [size.resized for size in row.images] == [(112, 112), (280, 56)]
    assert row.prompt.index("x 20") < row.prompt.index("x 16")


def test_a_row_that_cannot_be_asked_says_why_and_still_shows_its_prompt(folder: Path, reader: PromptReader) -> None:
    labelled = resolve(str(folder)).load("adapt")
    with pytest.raises(BadQuestion, match="three"):
        render_prompt(labelled.questions[2], reader)
    lines = list(row_lines(labelled.questions[2], labelled, reader))
    assert any(line.startswith("cannot be asked: three: ") for line in lines)
    assert any("What is it?" in line for line in lines)
    assert lines[-1] == "gold (never shown to training): scan | x-ray"


def test_absent_images_are_counted_without_opening_any(tmp_path: Path) -> None:
    there, archive = tmp_path / "there.png", tmp_path / "images.zip"
    there.write_bytes(b"never opened")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in.png", "x")
    images = (there, str(there), b"bytes", Image.new("RGB", (1, 1)), zipfile.Path(archive, "in.png"))
    assert missing(Question("q", images, "?", TEXT)) is None
    gone = (tmp_path / "gone.png", str(tmp_path / "gone.png"), b"", zipfile.Path(archive, "gone.png"))
    questions = tuple(Question(str(i), (there, image), "?", TEXT) for i, image in enumerate(gone))
    assert all(missing(question) is not None for question in questions)
    labelled = LabelledSet((*questions, Question("q", images, "?", TEXT)), {"q": ("x",), "elsewhere": ("y",)})
    counted = facts(BENCHMARKS["digits"], "adapt", labelled)
    assert (counted["rows"], counted["with a gold"]) == (5, 1)
    assert counted["not askable"].startswith("4 ")


def test_the_benchmarks_own_model_reads_it_and_a_stand_in_says_so() -> None:
    assert prompt_reader(BENCHMARKS["digits"]).remark == ""
    other = prompt_reader(replace(BENCHMARKS["digits"], default_model=None))
    assert "stands in" in other.remark and (other.min_pixels, other.max_pixels) == QWEN_PIXELS
    assert prompt_reader(replace(BENCHMARKS["digits"], default_model=None), str(MODEL_DIR)).remark == ""


@pytest.mark.parametrize("unseen", ["\x1b", "\x07", "\r", "\x9b", "\u202e", "\ud800"])
def test_what_a_terminal_would_act_on_is_written_out(unseen: str) -> None:
    assert visible(f"a{unseen}b\n\té") == f"a{unseen.encode('unicode_escape').decode()}b\n\té"


def test_show_prints_counts_rows_and_golds(command: Command, folder: Path) -> None:
    ended = command("benchmarks", "show", str(folder))
    assert ended.code == 0
    for expected in (
        "id: one",
        "image 1: 100 x 60 -> 112 x 56 pixels",
        "<|vision_start|><|image_pad|> x 8<|vision_end|>",
        "answer: kind=choice, choices=['left', 'right']",
        "gold (never shown to training): B",
        "image 2: 56 x 28 -> 84 x 56 pixels",
        r"\x1b[31m",
        "gold (never shown to training): none",
        "cannot be asked: three: ",
        "stands in",
    ):
        assert expected in ended.out, (expected, ended.out)
    assert "\x1b[31m" not in ended.out


def test_show_stops_at_its_limit(command: Command) -> None:
    ended = command("benchmarks", "show", "digits", "--limit", "2", "--split", "held_out")
    assert ended.code == 0
    assert ended.out.count("gold (never shown to training)") == 2
    assert "id: digits/held_out/0001" in ended.out and "stands in" not in ended.out


def test_real_rows_are_shown(command: Command, shared: Path) -> None:
    source = shared / "data" / "real_rows" / "mathvision"
    ended = command("benchmarks", "show", "mathvision", "--source", str(source), "--limit", "1", "--prompt", "short")
    assert ended.code == 0
    assert "<|image_pad|> x " in ended.out and "tokens: " in ended.out and "tags: level=" in ended.out


def test_what_show_cannot_do_is_one_message(command: Command, tmp_path: Path) -> None:
    refused(command("benchmarks", "show", "mathvison"), "did you mean 'mathvision'")
    refused(command("benchmarks", "show", "digits", "--split", "train"), "no split 'train'")
    refused(command("benchmarks", "show", "digits", "--model", str(tmp_path)), "--model", "no processor there")


def test_a_text_only_model_shows_text_and_refuses_images(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Qwen2Config

    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(tmp_path)
    Qwen2Config().save_pretrained(tmp_path)
    reader = prompt_reader(BENCHMARKS["aime24"], str(tmp_path))
    written = render_prompt(Question("q", (), "What is 1 + 1?", AnswerSpec("math")), reader)
    assert "What is 1 + 1?" in written.prompt and written.image_tokens == 0 and written.text_tokens > 0
    with pytest.raises(BadQuestion, match="no vision tower"):
        render_prompt(Question("q", (Image.new("RGB", (56, 56)),), "What?", AnswerSpec("math")), reader)


def test_built_in_questions_are_called_embedded_and_long_lists_of_names_are_cut(command: Command) -> None:
    ended = command("benchmarks", "show", "flags", "--limit", "1")
    words = " ".join(ended.out.replace("│", " ").split())
    assert ended.code == 0 and "source embedded" in words
    assert "(195 in all)" in words and "Zimbabwe" not in words


def test_a_folder_is_called_your_own(folder: Path) -> None:
    benchmark = resolve(str(folder))
    assert facts(benchmark, "adapt", benchmark.load("adapt"))["source"] == "your folder"
