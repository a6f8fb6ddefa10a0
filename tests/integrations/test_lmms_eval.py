"""A Policy as a model of lmms-eval: chats become questions, and a task's settings are followed."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms import DIGITS, needed, requests_of, user
from PIL import UnidentifiedImageError
from small import digit_policy, small_config, write_model
from tiny import tiny_image

from mm_spine import files, integrations
from mm_spine.config import ConfigError, ModelConfig, VotesConfig
from mm_spine.integrations import lmms_tasks
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.processors.vision import BadQuestion
from mm_spine.sampling.registry import make_sampler
from mm_spine.types import AnswerSpec, Question, Rollout


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
    long, short = (replace(said, finish_reason="length") for said in rollouts("One.\n\nTwo. Q: three </s>", "One"))
    assert (harness.cut(long, until).text, harness.cut(long, until).finish_reason) == ("One.\n\nTwo. ", "stop")
    assert harness.cut(short, until) is short


def rollouts(*texts: str) -> list[Rollout]:
    return [Rollout("q", i, (1,), text, np.zeros(1), None, "stop") for i, text in enumerate(texts)]


@needed
def test_votes_are_over_meaning_and_the_answer_is_a_response_of_the_winner(harness: Any) -> None:
    question = Question("q", (), "?", AnswerSpec("math"))
    said = rollouts("It is \\boxed{3}.", "Half: \\boxed{0.5}", "Maybe.", "So \\boxed{\\frac{1}{2}}.")
    assert harness.voted(question, said, VotesConfig()) == "Half: \\boxed{0.5}"
    unread = Question("q", (), "?", AnswerSpec("integer"))
    assert harness.voted(unread, rollouts("Hm.", "Well."), VotesConfig()) == "Hm."


@needed
def test_a_response_that_was_cut_off_is_not_the_answer(harness: Any) -> None:
    cut, *others = rollouts("It is 3, because", "\\boxed{3}", "\\boxed{3}", "\\boxed{4}")
    said = [replace(cut, finish_reason="length"), *others]
    assert harness.voted(Question("q", (), "?", AnswerSpec("integer")), said, VotesConfig()) == "\\boxed{3}"


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
    assert [g.text for g in given] == [
        harness.voted(q, r, small_config().sampling.votes) for q, r in zip(questions, drawn, strict=True)
    ]
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
    # The method of a plugin is not known here, and is not needed.
    tree = saved.model_dump(mode="json") | {"method": {"name": "of-a-plugin", "alpha": 0.5}}
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    assert harness.config_of(read({"pretrained": str(tmp_path / "adapted")})).seed == 5


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
