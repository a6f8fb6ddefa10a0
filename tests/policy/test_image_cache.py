"""The image cache: one tower run per distinct image, the same bits from tower, memory and files, budgets, damage."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cache_worker import Tower, cache_of, encoded
from PIL import Image
from small import small_config
from tiny import tiny_image, tiny_model, tiny_policy, tiny_processor, tiny_questions
from torch import Tensor

from mm_spine.adapt import adapt
from mm_spine.config import CacheConfig, ConfigError, ModelConfig
from mm_spine.policy import image_cache
from mm_spine.policy.image_cache import CacheUse, Features, ImageCache, over_ranks, pack, unpack
from mm_spine.policy.model import Policy
from mm_spine.processors.vision import BadQuestion
from mm_spine.runs.folder import check_same_config
from mm_spine.runs.plan import check, load_config
from mm_spine.runs.run import run
from mm_spine.types import AnswerSpec, Question


def policy_with(config: CacheConfig, model: ModelConfig | None = None, seed: int = 0) -> Policy:
    return Policy(tiny_model(seed), tiny_processor(), model, cache=config)


def equal(a: Features, b: Features) -> bool:
    return len(a.deepstack) == len(b.deepstack) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip((a[0], *a[1]), (b[0], *b[1]), strict=True)
    )


def files(folder: Path) -> list[Path]:
    return sorted((folder / image_cache.FOLDER).glob("*.safetensors"))


# --- the same bits, and how often the tower runs ----------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 3])
def test_tower_memory_and_disk_give_the_same_bits(layers: int, tmp_path: Path) -> None:
    tower, image = Tower(layers), encoded(1)
    first = cache_of(tmp_path, tower)
    made, kept, read = first.entry(image), first.entry(image), cache_of(tmp_path, tower).entry(image)
    assert equal(made, kept) and equal(made, read) and tower.calls == 1
    assert len(made.deepstack) == layers and torch.equal(made.final_ID, image.pixel_values.exp())
    assert torch.equal(first.features(image), made.final_ID)


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(train_merger=True)], ids=["frozen", "before merger"])
def test_a_policy_gets_the_same_bits_from_tower_memory_disk_and_after_dropping(
    config: ModelConfig, tmp_path: Path
) -> None:
    (question,) = tiny_questions(1, images=3)
    expected = policy_with(CacheConfig(), config).prompt(question).features_ID
    for cache in (CacheConfig(folder=tmp_path), CacheConfig(folder=tmp_path, memory_gb=0), CacheConfig(memory_gb=0)):
        policy = policy_with(cache, config)
        assert torch.equal(policy.prompt(question).features_ID, expected)
        assert torch.equal(policy.prompt(question).features_ID, expected)


def test_bfloat16_keeps_its_bits() -> None:
    entry = Features(torch.randn(3, 4).bfloat16(), (torch.randn(3, 2), torch.zeros(0, 2)))
    assert equal(unpack(pack(entry)), entry) and pack(unpack(pack(entry))) == pack(entry)


def test_a_second_epoch_over_the_same_images_makes_no_tower_call() -> None:
    policy, questions, calls = tiny_policy(), tiny_questions(3, images=2), [0]
    policy.tower.register_forward_hook(lambda *_: calls.append(calls.pop() + 1))
    for steps, seed in ((1, 0), (2, 1)):
        config = small_config({"optim": {"steps": steps, "questions_per_step": 3, "epochs": 2}, "seed": seed})
        adapt(questions, policy, config=config)
        assert calls == [6]
    use = policy.images.use()
    assert (use.tower_runs, use.misses, use.disk_hits) == (6, 6, 0) and use.hits > 6


def test_a_second_run_on_the_folder_makes_no_tower_call(tmp_path: Path) -> None:
    questions = tiny_questions(2, images=2)
    uses = []
    for _ in range(2):
        policy = policy_with(CacheConfig(folder=tmp_path))
        uses += [[policy.prompt(q).features_ID for q in questions] and policy.images.use()]
    size = uses[0].disk_bytes
    assert size == sum(path.stat().st_size for path in files(tmp_path)) > uses[0].memory_bytes > 0
    assert uses[0] == CacheUse(4, 4, 0, 4, uses[0].memory_bytes, size)
    assert uses[1] == CacheUse(4, 4, 4, 0, uses[0].memory_bytes, size)


def test_other_weights_types_and_mergers_have_files_of_their_own(tmp_path: Path) -> None:
    (question,) = tiny_questions(1)
    config = CacheConfig(folder=tmp_path)
    policies = [policy_with(config), policy_with(config, seed=1), policy_with(config, ModelConfig(train_merger=True))]
    policies.append(Policy(tiny_model().to(torch.bfloat16), tiny_processor(), cache=config))
    policies.append(policy_with(config, ModelConfig(min_pixels=28 * 28 * 20)))
    for count, policy in enumerate(policies, 1):
        policy.prompt(question)
        assert policy.images.use().tower_runs == 1 and len(files(tmp_path)) == count


def test_the_type_is_part_of_the_key_beside_the_weights(tmp_path: Path) -> None:
    towers = [Tower(), Tower()]
    towers[1].dtype = torch.bfloat16
    found = [cache_of(tmp_path, tower).features(encoded(0)).dtype for tower in towers]
    assert found == [torch.float32, torch.bfloat16] and [tower.calls for tower in towers] == [1, 1]


def test_the_checksum_of_the_tower_is_taken_once_and_only_for_files(tmp_path: Path) -> None:
    asked: list[int] = []
    for folder in (None, tmp_path):
        cache = ImageCache(Tower(), config=CacheConfig(folder=folder), checksum=lambda: asked.append(1) or "weights")
        for i in range(3):
            cache.features(encoded(i))
        assert len(asked) == (folder is not None)


# --- several images, and none -----------------------------------------------------------------------------------------


def test_joined_features_follow_the_keys_and_ask_for_pixels_only_if_one_was_dropped() -> None:
    images, asked = [encoded(0), encoded(1, tokens=2)], []
    keys = [images[i].key for i in (0, 1, 0)]
    cache, small = cache_of(None, Tower(2)), cache_of(None, Tower(2), memory=0)
    entries = [cache.entry(image) for image in images]
    for each in (cache, small):
        found = each.joined(keys, lambda: asked.append(1) or images)
        assert torch.equal(found.final_ID, torch.cat([entries[i].final_ID for i in (0, 1, 0)]))
        assert [len(layer) for layer in found.deepstack] == [10, 10]
        assert len(asked) == (each is small)
    assert found.wide_IF.shape == (10, 24)
    nothing = cache.joined([], lambda: images)
    assert [part.shape for part in (nothing[0], *nothing[1])] == [(0, 8)] * 3


def test_an_image_that_changed_while_it_was_dropped_is_an_error_that_names_the_question(tmp_path: Path) -> None:
    tiny_image(0).save(tmp_path / "a.png")
    question = Question("q7", (tmp_path / "a.png",), "Which digit?", AnswerSpec(kind="integer"))
    prompt = policy_with(CacheConfig(memory_gb=0)).prompt(question)
    assert len(prompt.features_ID)
    Image.effect_noise((56, 56), 60).save(tmp_path / "a.png")
    with pytest.raises(BadQuestion, match="q7: an image changed"):
        _ = prompt.features_ID


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_memory_keeps_its_budget_and_drops_what_was_used_least_recently(caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_of(None, memory=2 * 128)
    for seed in (0, 1, 0, 2, 0, 1):
        cache.features(encoded(seed))
        assert cache.use().memory_bytes <= 256
    assert cache.use().memory_bytes == 256
    assert (cache.tower_runs, cache.hits) == (4, 2)
    assert len([r for r in caplog.records if "cache.memory_gb" in r.message]) == 1


def test_the_prompts_of_a_run_hold_no_features() -> None:
    policy, questions = policy_with(CacheConfig(memory_gb=20e3 / 1e9)), tiny_questions(40)
    for question in questions:
        policy.prompt(question)
        assert policy.images.use().memory_bytes <= 20e3
    assert policy.images.use().tower_runs == 40
    held = [value for q in questions for value in vars(policy.prompt(q)).values() if isinstance(value, Tensor)]
    assert not any(tensor.is_floating_point() for tensor in held)


def test_the_folder_keeps_its_budget_and_drops_what_was_used_least_recently(tmp_path: Path) -> None:
    size = len(pack(Features(torch.zeros(4, 8))))
    cache = cache_of(tmp_path, memory=0, disk=4.5 * size)
    for seed in range(12):
        cache.features(encoded(seed))
        cache.features(encoded(0))
        assert cache.use().disk_bytes <= 4.5 * size
    runs = cache.tower_runs
    cache.features(encoded(0)), cache.features(encoded(11))
    assert runs == cache.tower_runs == 12
    cache.features(encoded(1))
    assert cache.tower_runs == 13


def test_an_entry_above_the_whole_budget_is_not_written(tmp_path: Path) -> None:
    cache_of(tmp_path, disk=100).features(encoded(0))
    assert files(tmp_path) == []


def test_files_of_others_are_never_counted_or_deleted(tmp_path: Path) -> None:
    mine = tmp_path / image_cache.FOLDER
    mine.mkdir()
    others = [tmp_path / "model.safetensors", mine / "model.safetensors", mine / "notes.writing"]
    for path in others:
        path.write_bytes(b"x" * 10_000)
        os.utime(path, (0, 0))
    cache = cache_of(tmp_path, disk=1000)
    for seed in range(5):
        cache.features(encoded(seed))
    assert all(path.is_file() for path in others) and 0 < cache.use().disk_bytes <= 1000


# --- damage -----------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-7],
    "empty": lambda data: b"",
    "half its header": lambda data: data[:20],
    "one bit": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "zeros": lambda data: bytes(len(data)),
    "something else": lambda data: b"<html>" * 50,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_a_miss_and_is_replaced(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = cache_of(tmp_path).entry(encoded(0))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    cache = cache_of(tmp_path)
    assert equal(cache.entry(encoded(0)), made) and cache.tower_runs == 1
    assert str(path) in caplog.text and path.read_bytes() == whole


def test_no_single_flipped_bit_goes_unseen() -> None:
    data = pack(Features(torch.randn(2, 3)))
    for at in range(len(data)):
        with pytest.raises((image_cache.SafetensorError, KeyError, ValueError)):
            unpack(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])


def test_a_full_disk_costs_tower_runs_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = cache_of(tmp_path, memory=0)
    for _ in range(2):
        assert torch.equal(cache.features(encoded(0)), encoded(0).pixel_values.exp())
    assert cache.tower_runs == 2 and list((tmp_path / image_cache.FOLDER).iterdir()) == []
    assert len([r for r in caplog.records if "No space left" in r.message]) == 1


# --- several processes ------------------------------------------------------------------------------------------------


def start(folder: Path, *arguments: str | float) -> subprocess.Popen[str]:
    """The worker, without what `import mm_spine` brings along."""
    here, given = Path(__file__).parents[1], ", ".join(map(repr, arguments))
    code = (
        f"import sys, types; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]\n"
        f"package = types.ModuleType('mm_spine'); package.__path__ = [{str(here.parent / 'mm_spine')!r}]\n"
        f"sys.modules['mm_spine'] = package\n"
        f"from pathlib import Path; import cache_worker; cache_worker.main(Path({str(folder)!r}), {given})\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("entries", [100, 3.5], ids=["room for all", "evicting"])
def test_two_processes_share_a_folder(entries: float, tmp_path: Path) -> None:
    size = len(pack(Features(torch.zeros(4, 8))))
    workers = [start(tmp_path, name, entries * size) for name in ("first", "second")]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert all(err == "" for _, err in outputs), "a warning: a file was damaged, or could not be written"
    if entries > 7:
        assert all(int(out) <= 7 for out, _ in outputs)
    left = sorted((tmp_path / image_cache.FOLDER).iterdir())
    assert left == files(tmp_path) and len(left) <= min(entries + 1, 7)
    for path in left:
        assert len(unpack(path.read_bytes()).final_ID) == 4


@pytest.mark.slow
def test_a_crash_while_writing_leaves_no_half_file_and_its_rest_is_cleared(tmp_path: Path) -> None:
    worker = start(tmp_path, "dies")
    assert worker.wait(timeout=120) == 9
    worker.communicate()
    (rest,) = (tmp_path / image_cache.FOLDER).iterdir()
    assert rest.suffix == ".writing" and files(tmp_path) == []
    cache = cache_of(tmp_path)
    cache.features(encoded(0))
    assert cache.tower_runs == 1 and len(files(tmp_path)) == 1
    assert rest.is_file(), "another process may still be writing it"
    os.utime(rest, (time.time() - image_cache.STALE - 1,) * 2)
    cache_of(tmp_path)
    assert not rest.exists() and len(files(tmp_path)) == 1


# --- config and report ------------------------------------------------------------------------------------------------


def test_the_figures_of_ranks_are_added_and_a_shared_folder_counts_once() -> None:
    uses = [CacheUse(5, 3, 1, 2, 100, 70), CacheUse(1, 2, 0, 2, 50, 80)]
    assert over_ranks(uses) == CacheUse(6, 5, 1, 4, 150, 80)


@pytest.mark.slow
def test_a_run_reports_its_cache_and_a_second_one_on_the_folder_runs_no_tower(tmp_path: Path) -> None:
    small = ["optim.steps=1", "limit=2", "evaluation.samples=2", "evaluation.held_out=false", "threads=1"]
    settings = [*small, "sampling.votes=2", "sampling.train_rollouts=2", "sampling.max_new_tokens=3"]
    found = []
    for name in ("one", "two"):
        config = load_config("digits", [*settings, f"cache.folder={tmp_path / 'cache'}"])
        found.append((run(config, tmp_path / name) or {})["image_cache"])
    assert found[0]["tower_runs"] == found[0]["misses"] == found[1]["disk_hits"] > 0
    assert found[1]["tower_runs"] == 0 and found[0]["hits"] == found[1]["hits"] > 0
    assert found[0]["disk_bytes"] == found[1]["disk_bytes"] > found[0]["memory_bytes"] > 0
    before, after = ((tmp_path / name / "steps.jsonl").read_bytes() for name in ("one", "two"))
    assert before == after


def test_a_cache_folder_that_cannot_be_is_refused_before_a_model_loads(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache\.folder=.*not a folder that can be written to"):
        check(load_config("digits", [f"cache.folder={tmp_path / 'file' / 'cache'}"]))


def test_a_resumed_run_may_have_another_cache() -> None:
    old, new = (load_config("digits", [f"cache.memory_gb={gb}", f"cache.folder=c{gb}"]) for gb in (1, 2))
    check_same_config(old.model_dump(mode="json"), new.model_dump(mode="json"), Path("config.yaml"))
