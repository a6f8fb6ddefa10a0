"""CLIP's similarity as the reward, with a tiny random CLIP: against transformers' own forward, and end to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import digit_policy, small_config
from tiny import tiny_image, tiny_processor, tiny_questions

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import ConfigError
from mm_spine.files import fingerprint
from mm_spine.methods import clip_reward
from mm_spine.methods.clip_reward import WEIGHT, clip_judge, clip_scores, load
from mm_spine.methods.rows_scored import check_clip
from mm_spine.methods.sections import ClipConfig
from mm_spine.methods.table import find
from mm_spine.runs.plan import check
from mm_spine.types import Answer, Group, Rollout, Vote

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of one layer each, with the shipped tokenizer, that reads at most 12 tokens."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = tiny_processor().tokenizer
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "eos_token_id": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        # Negative cosines count as 0. Almost all pairs get one sign, which this makes positive.
        inputs = tokenizer(["1", "2", "12"], padding=True, return_tensors="pt")
        seen = model(inputs["input_ids"], torch.ones(1, 3, 32, 32), inputs["attention_mask"]).logits_per_image
        if seen.mean() < 0:
            model.visual_projection.weight.data.neg_()
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def group(*answers: str | None) -> Group:
    rollouts = [
        Rollout("q0", i, (5,), f"it is {a}", np.zeros(1, np.float32), None, "stop") for i, a in enumerate(answers)
    ]
    parsed = tuple(None if a is None else Answer(a, a) for a in answers)
    return Group(tiny_questions(1)[0], tuple(rollouts), answers, Vote(answers[0], 0.5, {}, 0.0, 1), parsed=parsed)


def test_scores_are_two_and_a_half_times_the_cosine_of_transformers(folder: Path) -> None:
    clip = load(folder, CPU)
    assert not clip.model.training and not any(p.requires_grad for p in clip.model.parameters())
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    images, texts = (
        [tiny_image(0), tiny_image(1)],
        ["7", "12 dogs", "a very long answer that CLIP cannot read whole at all"],
    )
    inputs = clip.tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        both = clip.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            pixel_values=clip.images(images=images, return_tensors="pt")["pixel_values"],
        )  # fmt: skip
    cosine = both.image_embeds @ both.text_embeds.T
    torch.testing.assert_close(clip_scores(clip, images, texts), WEIGHT * cosine.clamp(min=0), atol=1e-6, rtol=1e-5)
    assert len(set(cosine.flatten().tolist())) == 6


def test_answers_are_scored_once_each_and_the_mean_over_images_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def fixed(clip: object, images: object, texts: list[str]) -> torch.Tensor:
        seen.append(texts)
        return torch.tensor([[1.0, 0.5], [2.0, 0.0]])

    monkeypatch.setattr(clip_reward, "clip_scores", fixed)
    options = ClipConfig(name="rlcf", clip=folder)
    found = clip_judge(options, group("7", "8", "7", None), [tiny_image(0), tiny_image(1)], CPU)
    assert [float(x[0]) for x in found] == [1.5, 0.25, 1.5, 0.0] and seen == [["7", "8"]]
    whole = options.model_copy(update={"clip_text": "response"})
    clip_judge(whole, group("7", "8", "7", None), [tiny_image(0), tiny_image(1)], CPU)
    assert seen[1] == ["it is 7", "it is 8"]
    assert [float(x[0]) for x in clip_judge(options, group("7", None), [], CPU)] == [0.0, 0.0] and len(seen) == 2


def test_a_missing_or_wrong_folder_is_refused_before_any_model_loads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "siglip"}')
    for clip, message in (
        (None, "needs a CLIP model: set method.clip to its folder"),
        (tmp_path, "no readable config.json"),
        (tmp_path / "other", "its model_type is 'siglip', not clip"),
    ):
        own = {} if clip is None else {"clip": clip}
        config = small_config({"benchmark": "digits", "method": {"name": "rlcf", **own}})
        with pytest.raises(ConfigError, match=message):
            check(config)
        with pytest.raises(ConfigError, match=message):
            adapt(tiny_questions(1), digit_policy(), config=config)
    check_clip(ClipConfig(name="rlcf", clip=folder))


def test_a_model_without_one_of_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "clip"))
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="its weights lack visual_projection.weight; fetch the folder again"):
        load(copy, CPU)


def test_the_files_of_the_model_are_part_of_a_runs_start(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "clip"))
    reads = find("rlcf").reads
    assert reads is not None and find("ttrl").reads is None
    old = {"files": fingerprint.of_folders(reads(ClipConfig(name="rlcf", clip=copy)))}
    assert any(name.endswith("model.safetensors") for name in old["files"])
    assert list(fingerprint.file_differences(old, old)) == list(fingerprint.file_differences({}, {})) == []
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    new = {"files": fingerprint.of_folders([copy])}
    (problem,) = fingerprint.file_differences(old, new)
    assert problem == f"{copy / 'model.safetensors'}, which the method reads, changed"


def test_a_step_rewards_each_answer_by_its_score_less_the_mean(folder: Path) -> None:
    records: list[StepRecord] = []
    config = small_config({"method": {"name": "rlcf", "clip": str(folder)}, "optim": {"steps": 1}})
    questions, policy = tiny_questions(4), digit_policy()
    start = policy.weights()
    adapt(questions, policy, config=config, hooks=Hooks(records.append))
    assert any(not torch.equal(weight, start[name]) for name, weight in policy.trainable().items())
    for found in records[0].groups:
        texts = [None if parsed is None else parsed.text for parsed in found.parsed]
        distinct = [text for text in dict.fromkeys(texts) if text is not None]
        scores = clip_scores(load(folder, CPU), policy.pictures(found.question), distinct)[0] if distinct else []
        by_text = dict(zip(distinct, map(float, scores), strict=True))
        expected = torch.tensor([0.0 if text is None else by_text[text] for text in texts])
        torch.testing.assert_close(found.rewards, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.advantages, expected - expected.mean(), atol=1e-6, rtol=1e-5)
    assert records[0].report.reward_mean is not None
