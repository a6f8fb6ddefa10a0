"""lmms-eval around our models and over our questions: the same prompts, responses and scores, and no trace in a run."""

from __future__ import annotations

import json
import logging
import os
import random
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from small import digit_policy, small_config, write_data, write_model
from tiny import tiny_image, tiny_policy
from torch.distributed import distributed_c10d

from mm_spine import cli, evaluation, files, integrations
from mm_spine.benchmarks import resolve
from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.config import ConfigError, ModelConfig
from mm_spine.integrations import lmms_cli, lmms_hook, lmms_tasks
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.processors.vision import BadQuestion
from mm_spine.runs.plan import load_config
from mm_spine.runs.run import run
from mm_spine.sampling.registry import make_sampler
from mm_spine.types import AnswerSpec, Question, Rollout

needed = pytest.mark.skipif(find_spec("lmms_eval") is None, reason='lmms-eval is not installed: "mm-spine[eval]"')
DIGITS = "mm_spine_digits_adapt"
LAUNCHERS_OWN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """lmms-eval copies each list of questions to a cache, which is not to be the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def harness() -> Any:
    """The model's module, imported as a run does: with nothing else of the process changed."""
    with lmms_hook.unchanged():
        from mm_spine.integrations import lmms_eval
    return lmms_eval


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own questions: two images within a prompt, options, an image on its side, none at all, and no gold."""
    path = tmp_path_factory.mktemp("own") / "scans"
    path.mkdir()
    for i in range(3):
        tiny_image(i).save(path / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny_image(5).save(path / "turned.jpg", exif=exif, quality=95)
    rows = [
        {"images": ["0.png", "1.png"], "prompt": "Is <image2> like\n\n<image1>, <image1>?", "kind": "integer"},
        {"image": "2.png", "prompt": "Which?", "choices": ["one", "two"], "answer": "B"},
        {"image": "turned.jpg", "prompt": "Which digit?", "kind": "integer", "answer": ["1", "2", "11", "12", "22"]},
        {"prompt": "Nothing to see: which digit?", "kind": "integer", "answer": 2},
    ]
    (path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(folder: Path, tasks: Path, **settings: Any) -> Any:
    """A small run's configuration that asks lmms-eval for the folder's questions too."""
    names = lmms_tasks.write_tasks(str(folder), tasks, max_new_tokens=6)
    return small_config(
        {"benchmark": str(folder), "evaluation": {"lmms_eval": names, "lmms_eval_tasks": str(tasks), **settings}}
    )


def requests_of(docs: Sequence[Any], messages: Any, gen_kwargs: dict[str, Any] | None = None) -> list[Any]:
    """What lmms-eval hands to a chat model for the first `len(docs)` rows of the task "t"."""
    return [SimpleNamespace(args=("", messages, gen_kwargs or {}, i, "t", "test")) for i in range(len(docs))]


def user(*parts: tuple[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": kind, "text" if kind == "text" else "url": value} for kind, value in parts]
    return [{"role": "user", "content": content}]


def texts_of(results: dict[str, Any], task: str) -> list[str]:
    return [row["resps"][0][0] for row in results["samples"][task]]


# The same items


@needed
def test_both_evaluations_of_the_embedded_benchmark_agree_item_by_item() -> None:
    config = load_config("digits", [f"evaluation.lmms_eval=[{DIGITS}]", "evaluation.lmms_eval_limit=16"])
    policy, digits = Policy.load(MODEL_DIR), resolve("digits").load("adapt")
    results = lmms_hook.evaluate(policy, config)
    sampler = make_sampler(policy, config, config.evaluation)
    items = evaluation.evaluate(digits.questions[:16], digits.key, sampler, samples=1, split="adapt")
    rows = results["samples"][DIGITS]
    assert [row["id"] for row in rows] == [item.id for item in items]
    assert texts_of(results, DIGITS) == [item.greedy_text for item in items]
    assert [row["score"] for row in rows] == [item.greedy.score for item in items if item.greedy]
    assert lmms_hook.figures(results)[DIGITS]["score"] == evaluation.metrics(items)["greedy"]
    assert 0 < evaluation.metrics(items)["greedy"] < 1


@needed
def test_both_evaluations_of_a_folder_agree_item_by_item(folder: Path, tmp_path: Path) -> None:
    config, policy, own = asked(folder, tmp_path), digit_policy(), resolve(str(folder)).load("adapt")
    results = lmms_hook.evaluate(policy, config)
    sampler = make_sampler(policy, config, config.evaluation)
    items = evaluation.evaluate(own.questions, own.key, sampler, samples=1, split="adapt")
    (task,) = config.evaluation.lmms_eval
    assert texts_of(results, task) == [item.greedy_text for item in items]
    scores = [row.get("score") for row in results["samples"][task]]
    assert scores == [item.greedy and item.greedy.score for item in items]
    assert scores[0] is None and results["results"][task]["score,none"] == np.mean(scores[1:])


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
    (task,) = lmms_tasks.write_tasks(str(folder), tmp_path)
    doc, choice, turned, _ = files.read_json_lines(tmp_path / f"{task}.jsonl")
    assert lmms_tasks.doc_to_text(doc) == "Is <image> like\n\n<image>, image 1?"
    assert lmms_tasks.doc_to_text(choice) == "Which?\n(A) one\n(B) two"
    assert [image.size for image in lmms_tasks.doc_to_visual(doc)] == [tiny_image(0).size, tiny_image(1).size]
    assert lmms_tasks.doc_to_visual(turned)[0].size == tiny_image(5).size[::-1] != tiny_image(5).size


# Tasks


def test_the_shipped_tasks_are_those_of_the_embedded_benchmark(tmp_path: Path) -> None:
    names = lmms_tasks.write_tasks("digits", tmp_path)
    assert names == [DIGITS, "mm_spine_digits_held_out"]
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in lmms_tasks.SHIPPED.iterdir())
    assert all((tmp_path / name).read_bytes() == (lmms_tasks.SHIPPED / name).read_bytes() for name in written)


def test_a_task_is_asked_as_the_benchmarks_configuration_says(tmp_path: Path) -> None:
    assert lmms_tasks.config_of("slake").evaluation.max_new_tokens == 2048
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


# The model


@needed
def test_the_entry_point_names_a_chat_model(harness: Any, repository: Path) -> None:
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    points = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    assert points == {"mm_spine": "mm_spine.integrations:manifest"}
    registry = ModelRegistryV2()
    registry.register_manifest(integrations.manifest())
    assert registry.get_model_class("mm_spine") is harness.MMSpine


@needed
def test_texts_and_images_keep_their_places(harness: Any) -> None:
    a, b = tiny_image(0), tiny_image(1)
    chat = user(("text", "From "), ("image", a), ("text", " to <image 1> and "), ("image", b), ("text", "?"))
    found = harness.question_of(chat, "q", AnswerSpec("text"))
    assert found.prompt == "From <image1> to image 1 and <image2>?"
    assert found.images == (a, b)


@needed
@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (user(("video", "a.mp4")), "holds video"),
        (user(("audio", "a.wav"), ("text", "what?")), "holds audio"),
        ([{"role": "system", "content": []}, *user(("text", "hm?"))], "turns of system, user"),
        ([], "turns of nothing"),
    ],
)
def test_what_a_model_of_ours_cannot_see_is_refused_by_name(harness: Any, messages: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^t/test/3: {why}.*leave this task out"):
        harness.question_of(messages, "t/test/3", AnswerSpec("text"))


@needed
def test_what_the_task_says_is_done_unless_the_user_says_otherwise(harness: Any) -> None:
    base = configure({"evaluation": {"temperature": 0.9, "top_p": 0.8, "max_new_tokens": 77}}).evaluation

    def drawn(task: dict[str, Any], **overrides: Any) -> tuple[Any, ...]:
        decoding, greedy, _ = harness.Overrides(**overrides).decoding(task, base)
        return greedy, decoding.temperature, decoding.top_p, decoding.max_new_tokens

    assert drawn({}) == (True, 0.9, 0.8, 77)
    assert drawn({"do_sample": False, "temperature": 0.5, "max_new_tokens": 9}) == (True, 0.9, 0.8, 9)
    assert drawn({"temperature": 0.5, "top_p": 0.7}) == (False, 0.5, 0.7, 77)
    assert drawn({"do_sample": True}) == (False, 1.0, 0.8, 77)
    assert drawn({"temperature": 0, "do_sample": True}) == (True, 0.9, 0.8, 77)
    assert drawn({"temperature": 0.5}, temperature=0.0) == (True, 0.9, 0.8, 77)
    assert drawn({"temperature": 0, "max_new_tokens": 9}, votes=4) == (False, 0.9, 0.8, 9)
    assert drawn({"temperature": 0}, votes=4, temperature=0.7, top_p=1.0, max_new_tokens=5) == (False, 0.7, 1.0, 5)


@needed
def test_a_response_ends_before_a_stop_of_the_task_but_not_at_the_default_one(harness: Any) -> None:
    base = configure({}).evaluation
    until = harness.Overrides().decoding({"until": ["\n\n", "</s>", "Q:"]}, base).until
    assert until == ("</s>", "Q:")
    assert harness.Overrides().decoding({"until": "."}, base).until == (".",)
    assert harness.cut("One.\n\nTwo. Q: three </s>", until) == "One.\n\nTwo. "
    assert harness.cut("One", ()) == "One"


def rollouts(*texts: str) -> list[Rollout]:
    return [Rollout("q", i, (1,), text, np.zeros(1), None, "stop") for i, text in enumerate(texts)]


@needed
def test_votes_are_over_meaning_and_the_answer_is_a_response_of_the_winner(harness: Any) -> None:
    question = Question("q", (), "?", AnswerSpec("math"))
    said = rollouts("It is \\boxed{3}.", "Half: \\boxed{0.5}", "Maybe.", "So \\boxed{\\frac{1}{2}}.")
    assert harness.voted(question, said) == "Half: \\boxed{0.5}"
    assert harness.voted(Question("q", (), "?", AnswerSpec("integer")), rollouts("Hm.", "Well.")) == "Hm."


@needed
def test_sampled_responses_are_voted_on_by_the_kind_of_our_task(harness: Any) -> None:
    docs = files.read_json_lines(lmms_tasks.SHIPPED / f"{DIGITS}.jsonl")[:3]
    model = harness.MMSpine(digit_policy(), small_config(), harness.Overrides(votes=5))
    model.task_dict = {"t": {"test": docs}}
    given = model.generate_until(requests_of(docs, lmms_tasks.doc_to_messages))
    questions = [
        Question(f"t/test/{i}", q.images, q.prompt, q.spec) for i, q in enumerate(map(lmms_tasks.question_of, docs))
    ]
    sampler = make_sampler(model.policy, model.config, model.config.evaluation)
    drawn = sampler.sample(questions, 5, step=0, purpose="lmms-eval")
    assert [g.text for g in given] == [harness.voted(q, r) for q, r in zip(questions, drawn, strict=True)]
    assert given[0].token_counts.output_tokens == sum(len(rollout.token_ids) for rollout in drawn[0])


@needed
def test_repeats_of_a_question_are_draws_of_their_own(harness: Any) -> None:
    model = harness.MMSpine(digit_policy(), small_config())
    model.task_dict = {"t": {"test": [{}, {}]}}
    first, second = requests_of([{}, {}], lambda doc: user(("text", "Which digit?")), {"temperature": 1.0})
    once = [g.text for g in model.generate_until([first, second])]
    thrice = [g.text for g in model.generate_until([first, first, first, second])]
    assert [thrice[0], thrice[3]] == once
    assert len(set(thrice[:3])) > 1


@needed
def test_what_cannot_be_asked_is_answered_with_nothing_and_leaves_no_trace(
    harness: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = harness.MMSpine(digit_policy(), small_config())
    words = ("Which digit?", "<|im_end|> which?", "unreadable", "damaged", "Which digit?")
    docs = [{"text": text} for text in words]
    model.task_dict = {"t": {"test": docs}}

    def messages(doc: dict[str, str]) -> Any:
        if doc["text"] == "unreadable":
            raise BadQuestion("t/test/2: cannot read image")
        if doc["text"] == "damaged":
            raise UnidentifiedImageError("cannot identify image file")
        return user(("text", doc["text"]))

    given = [g.text for g in model.generate_until(requests_of(docs, messages))]
    assert given[1:4] == ["", "", ""] and given[0] == given[4] != ""
    assert "t/test/3: cannot identify image file" in caplog.text
    assert "contains the special token <|im_end|>" in caplog.text and "cannot read image" in caplog.text
    assert model.policy.skipped == {} and model.policy._prompts == {}


@needed
def test_what_is_no_generation_of_one_turn_says_so(harness: Any) -> None:
    model = harness.MMSpine(digit_policy(), small_config())
    with pytest.raises(NotImplementedError, match="scored by log-likelihood is not supported"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="several rounds is not supported"):
        model.generate_until_multi_round([])


# --model_args


@needed
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "pretrained is not set"),
        ({"pretrained": "m", "vote": 8}, "vote: no such argument; did you mean 'votes'?"),
        ({"pretrained": "m", "votes": 0}, "votes=0"),
        ({"pretrained": "m", "votes": 8, "temperature": 0}, "at temperature 0 all responses are equal"),
        ({"pretrained": "m", "kind": "maths"}, "did you mean 'math'?"),
        ({"pretrained": "run/adapted", "adapter": "run/adapted/adapter"}, "has it merged in; leave it out"),
        ({"pretrained": "m", "adapter": "nowhere"}, "adapter=nowhere: no adapter_config.json there"),
    ],
)
def test_a_wrong_argument_is_named(harness: Any, given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError) as error:
        harness.read_arguments(given)
    assert why in str(error.value)


@needed
def test_a_model_is_loaded_as_in_the_run_that_adapted_it(harness: Any, tmp_path: Path) -> None:
    saved = configure({"model": {"path": "m", "train": "lora", "dtype": "bfloat16", "max_pixels": 9000}, "seed": 5})
    (tmp_path / "config.yaml").write_text(json.dumps(saved.model_dump(mode="json")))
    read = harness.read_arguments
    config = harness.config_of(read({"pretrained": str(tmp_path / "adapted"), "batch_size": 1, "device": "cuda"}))
    model = config.model
    assert (model.train, model.dtype, model.max_pixels, config.seed) == ("full", "bfloat16", 9000, 5)
    own = {"pretrained": "elsewhere", "config": str(tmp_path / "config.yaml"), "dtype": "float32", "seed": 1}
    other = harness.config_of(read(own))
    assert (other.model.dtype, other.model.max_pixels, other.seed) == ("float32", 9000, 1)
    assert harness.config_of(read({"pretrained": "m"})).evaluation.max_new_tokens == harness.NEW_TOKENS


@needed
def test_an_adapter_on_its_model_is_the_merged_model(harness: Any, tmp_path: Path) -> None:
    start = write_model(tmp_path / "start")
    adapted = Policy.load(start, ModelConfig(train="lora"))
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    adapted.save(tmp_path / "adapted")
    arguments = {"pretrained": str(start), "adapter": str(tmp_path / "adapted" / "adapter")}
    model = harness.MMSpine.load(harness.read_arguments(arguments))
    merged, plain = Policy.load(tmp_path / "adapted"), Policy.load(start)
    weights = [policy.text.language_model.layers[0].mlp.up_proj.weight for policy in (model.policy, merged, plain)]
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert not torch.allclose(weights[0], weights[2], atol=1e-2)


@needed
@pytest.mark.parametrize("damage", ["width", "depth", "cut"])
def test_an_adapter_of_another_model_is_refused(harness: Any, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    adapted = Policy.load(write_model(tmp_path / "start"), ModelConfig(train="lora"))
    adapted.save(tmp_path / "adapted")
    folder = tmp_path / "adapted" / "adapter"
    file = folder / harness.ADAPTER
    weights = load_file(file)
    if damage == "width":
        weights = {name: torch.zeros(*weight.shape[:-1], weight.shape[-1] + 1) for name, weight in weights.items()}
    elif damage == "depth":
        weights |= {name.replace("layers.0", "layers.9"): weight.clone() for name, weight in weights.items()}
    save_file(weights, file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=f"adapter={folder}: not of this model .*; give both of one run") as refused:
        harness.merge_adapter(Policy.load(tmp_path / "start"), folder)
    assert "\n" not in str(refused.value)


# The hook


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of one run without and with lmms-eval, of three steps each."""
    place = tmp_path_factory.mktemp("runs")
    model, data = write_model(place / "model"), write_data(place / "data")
    asking = asked(data, place / "tasks", lmms_eval_every=2, lmms_eval_limit=3)
    for name, layer in (("off", {}), ("on", asking.evaluation.model_dump(mode="json", exclude_unset=True))):
        config = small_config({"benchmark": str(data), "model": {"path": str(model)}, "evaluation": layer})
        assert run(config, place / name) is not None
    return place / "off", place / "on"


@needed
def test_a_run_is_the_same_to_the_bit_with_lmms_eval_on_or_off(runs: tuple[Path, Path]) -> None:
    off, on = runs
    names = ["steps.jsonl", "evaluation/before.jsonl", "evaluation/after.jsonl", "adapted/model.safetensors"]
    names += [str(path.relative_to(off)) for path in sorted(off.glob("rollouts/*"))]
    assert len(names) == 7
    assert [name for name in names if (off / name).read_bytes() != (on / name).read_bytes()] == []
    one, other = (files.read_json(folder / "summary.json") for folder in runs)
    assert one["lmms_eval"] is None
    assert one["skipped"] == other["skipped"] and one["fingerprint"] == other["fingerprint"]


@needed
def test_results_of_before_between_and_after_are_in_the_runs_folder(runs: tuple[Path, Path]) -> None:
    _, on = runs
    folder = on / "evaluation" / "lmms_eval"
    assert sorted(path.name for path in folder.iterdir()) == ["after.json", "before.json", "step_000002.json"]
    summary = files.read_json(on / "summary.json")["lmms_eval"]
    for when in ("before", "after"):
        results = files.read_json(folder / f"{when}.json")
        assert lmms_hook.figures(results) == summary[when]
        items = files.read_json_lines(on / "evaluation" / f"{when}.jsonl")
        assert texts_of(results, "mm_spine_data_adapt") == [item["greedy_text"] for item in items[:3]]
        assert summary[when]["mm_spine_data_adapt"]["score"] == np.mean([i["greedy"]["score"] for i in items[:3]])


@needed
def test_nothing_of_the_process_changes(folder: Path, tmp_path: Path) -> None:
    def state() -> list[Any]:
        draws = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore
        return [
            *draws,
            dict(os.environ),
            list(warnings.filters),
            logging.getLogger().level,
            distributed_c10d.default_pg_timeout,
        ]

    before = state()
    with lmms_hook.unchanged():
        random.random(), np.random.random(), torch.rand(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        warnings.filterwarnings("ignore")
        logging.getLogger().setLevel(1)
        distributed_c10d.default_pg_timeout = None
    assert state() == before
    lmms_hook.evaluate(digit_policy(), asked(folder, tmp_path))
    assert state() == before


@needed
def test_a_task_that_fails_ends_no_run_that_has_trained(folder: Path, tmp_path: Path) -> None:
    config = asked(folder, tmp_path)
    (tmp_path / f"{config.evaluation.lmms_eval[0]}.yaml").write_text("task: mm_spine_scans_adapt\noutput_type: talk\n")
    with pytest.raises(ConfigError, match=r"evaluation\.lmms_eval: ValueError: .*output_type 'talk'"):
        lmms_hook.evaluate(digit_policy(), config)
    found = lmms_hook.evaluate(digit_policy(), config, strict=False)
    assert "output_type 'talk'" in found["error"] and lmms_hook.figures(found) == {}


# What is wrong is said before a model loads


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """What `mm-spine adapt digits` says before it ends with exit code 2, no model loaded."""
    command = ["mm-spine", "adapt", "digits", "--output", "nowhere", *overrides]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(Policy, "load", lambda *args, **kwargs: pytest.fail("the model was loaded before the check"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_lmms_eval_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms_hook, "find_spec", lambda name: None)
    said = refused(capsys, monkeypatch, f"evaluation.lmms_eval=[{DIGITS}]")
    install = 'pip install -c constraints.txt "mm-spine[eval]"'
    assert said == f"mm-spine: evaluation.lmms_eval: lmms-eval is not installed; {install}"


@needed
@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["evaluation.lmms_eval_tasks=absent"], "evaluation.lmms_eval_tasks=absent: no such folder"),
        (["scope=question"], "needs scope=dataset"),
    ],
)
def test_what_cannot_be_asked_of_lmms_eval_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, overrides: list[str], why: str
) -> None:
    assert why in refused(capsys, monkeypatch, f"evaluation.lmms_eval=[{DIGITS}]", *overrides)


@needed
def test_an_unknown_task_is_named_with_the_nearest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms_hook, "_task_manager", lambda settings: SimpleNamespace(all_tasks=["pope", DIGITS]))
    said = refused(capsys, monkeypatch, "evaluation.lmms_eval=[pope, mm_spine_digit_adapt]")
    assert f"no task 'mm_spine_digit_adapt'; did you mean '{DIGITS}'? see `lmms-eval --tasks list`" in said


# The command


def test_the_command_passes_on_what_follows_two_dashes(folder: Path, tmp_path: Path) -> None:
    given = ["m", "pope", str(folder), "mm_spine:digits", "--args", "votes=8", "--output", str(tmp_path)]
    command = lmms_cli.command_line(lmms_cli.parser().parse_args(given), ["--limit", "8"])
    assert command[:4] == ["--model", "mm_spine", "--model_args", "pretrained=m,votes=8"]
    assert command[5] == f"pope,mm_spine_scans_adapt,{DIGITS},mm_spine_digits_held_out"
    assert command[6:] == [
        *("--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path)),
        *("--log_samples", "--limit", "8"),
    ]
    assert (tmp_path / "tasks" / "mm_spine_scans_adapt.yaml").is_file()


def test_the_script_helps_without_installing_anything(repository: Path) -> None:
    script = repository / "scripts" / "eval_lmms.sh"
    said = subprocess.run(["bash", str(script), "--help"], capture_output=True, text=True, check=True).stdout
    assert "usage: scripts/eval_lmms.sh MODEL TASK..." in said


@needed
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([str(MODEL_DIR), DIGITS, "--args", "vote=8"], "model_args vote: no such argument; did you mean 'votes'?"),
        ([str(MODEL_DIR), DIGITS, "--args", "votes"], "--args 'votes': write it as votes=8,temperature=0.7"),
        ([str(MODEL_DIR.parent), DIGITS], "no config.json there"),
        (["a,b", DIGITS], "no comma in it"),
        ([str(MODEL_DIR), "mm_spine:digitz"], "did you mean 'digits'"),
        ([str(MODEL_DIR), DIGITS, "--args", "adapter=absent"], "adapter=absent: no adapter_config.json there"),
        (["./absent", DIGITS], "neither a folder nor a hub id"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_sentence(
    given: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        lmms_cli.main([*given, "--output", str(tmp_path)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("mm-spine: ") and said.count("\n") == 1 and why in said


def test_the_script_hands_each_word_on_as_it_is(repository: Path, tmp_path: Path) -> None:
    root, here = tmp_path / "a check out", tmp_path / "the user's folder"
    shutil.copytree(repository / "scripts", root / "scripts")
    (root / ".venv" / "bin").mkdir(parents=True)
    here.mkdir()
    python = root / ".venv" / "bin" / "python"
    python.write_text(f"""#!/bin/sh
case "$1" in -c) exit 0 ;; esac
exec {shlex.quote(sys.executable)} -c 'import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))' "$@"
""")
    python.chmod(0o755)
    setup = root / "scripts" / "_setup.sh"
    setup.write_text(setup.read_text() + "\nis_current() { true; }\n")
    words = ["my model", "own scans", "--args", "votes=8,temperature=0.7", "--", "--gen_kwargs", "until=$HOME *;\"'"]
    script = ["bash", str(root / "scripts" / "eval_lmms.sh"), *words]
    done = subprocess.run(script, cwd=here, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [str(here), "-m", "mm_spine.integrations.lmms_cli", *words]


@needed
@pytest.mark.slow
def test_lmms_evals_own_command_gives_the_responses_and_scores_of_our_evaluation(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mm_spine.integrations.lmms_cli", str(MODEL_DIR), DIGITS, "--output", "out"]
    more = ["--", "--limit", "4", "--include_path", str(lmms_tasks.SHIPPED)]
    # DeepSpeed has left its variables in this process, where a run was tested before.
    environment = {name: x for name, x in os.environ.items() if name not in LAUNCHERS_OWN}
    done = subprocess.run([*line, *more], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    (results,), (samples,) = ((tmp_path / "out").glob(f"*/*_{name}*") for name in ("results.json", "samples"))
    policy, digits = Policy.load(MODEL_DIR), resolve("digits").load("adapt")
    sampler = make_sampler(policy, configure({}), lmms_tasks.config_of("digits").evaluation)
    items = evaluation.evaluate(digits.questions[:4], digits.key, sampler, samples=1, split="adapt")
    rows = files.read_json_lines(samples)
    assert [row["filtered_resps"] for row in rows] == [item.greedy_text for item in items]
    assert [row["score"] for row in rows] == [item.greedy.score for item in items if item.greedy]
    assert files.read_json(results)["results"][DIGITS]["score,none"] == evaluation.metrics(items)["greedy"]
