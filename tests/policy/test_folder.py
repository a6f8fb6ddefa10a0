"""Model folders that are accepted, and those that are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.config import PromptConfig
from mm_spine.policy import model, processor_files
from mm_spine.policy.errors import ModelError, NotFinite
from mm_spine.policy.folder import check_model_folder, resolve_model
from mm_spine.policy.model import Policy
from mm_spine.types import AnswerSpec, Question


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of the shipped model folder to break."""
    yield Path(shutil.copytree(MODEL_DIR, tmp_path / "model"))


def test_shipped_model_folder_is_accepted(folder: Path) -> None:
    check_model_folder(folder)
    assert resolve_model(str(folder)) == folder


def index(folder: Path, *shards: str) -> None:
    """An index that lists `shards`."""
    text = json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(shards)}})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: not a JSON object"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config\.json: not a JSON object"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "bloom"})), "'bloom'.*qwen2_5_vl"),
        (lambda f: (f / "config.json").write_text("{}"), "None.*qwen2_5_vl"),
        (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors.*corrupt"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 4096), r"model\.safetensors.*corrupt"),
        (lambda f: truncate(f / "model.safetensors"), r"model\.safetensors.*truncated"),
        (lambda f: index(f, "model-2-of-2.safetensors"), r"model-2-of-2\.safetensors is missing"),
    ],
)
def test_unusable_model_folders_are_refused_by_name(folder: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=words) as raised:
        Policy.load(folder)
    assert str(folder) in str(raised.value)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", change)


def text_config(**values: Any) -> Callable[[Path], None]:
    return config(lambda found: found["text_config"].update(values))


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    return damage


def template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


def untie(found: dict[str, Any]) -> None:
    found["tie_word_embeddings"] = found["text_config"]["tie_word_embeddings"] = False


NORM = "model.norm.weight"
DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "all renamed": (weights(lambda w: {f"foo.{n}": x for n, x in w.items()}), "93 missing .* 92 left over"),
    "one missing": (weights(lambda w: {n: x for n, x in w.items() if n != NORM}), "1 missing .*norm.weight"),
    "tower's missing": (
        weights(lambda w: {n: x for n, x in w.items() if n != "visual.merger.ln_q.weight"}),
        "1 missing .*visual.merger.ln_q",
    ),
    "one left over": (weights(lambda w: {**w, "extra": torch.ones(3)}), r"1 left over \(extra\)"),
    "another head": (weights(lambda w: {**w, "lm_head.weight": torch.ones(423, 128)}), "tie_word_embeddings=true"),
    "untied": (config(untie), "1 missing .*lm_head.weight"),
    "another shape": (weights(lambda w: {**w, NORM: torch.ones(64)}), r"another shape .*\(64,\) for \(128,\)"),
    "integers": (weights(lambda w: {**w, NORM: torch.ones(128, dtype=torch.int8)}), "stored as I8"),
    "absurd width": (text_config(hidden_size=10**7), "another shape .*10000000"),
    "absurd depth": (text_config(num_hidden_layers=10**7), "num_hidden_layers=10000000"),
    "absurd vocabulary": (text_config(vocab_size=10**30), "no model that can be built"),
    "no number": (text_config(hidden_size="x"), "no model that can be built"),
    "no heads": (text_config(num_attention_heads=0), "no model that can be built"),
    "another vision family": (config(lambda found: found.update(model_type="qwen3_vl")), "not those of the model"),
    "a text family": (config(lambda found: found.update(model_type="qwen2")), "model="),
    "awq": (config(lambda f: f.update(quantization_config={"quant_method": "awq"})), r"quantization_config \(awq\)"),
    "bitsandbytes": (
        config(lambda f: f["text_config"].update(quantization_config={"quant_method": "bitsandbytes"})),
        "quantised weights",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no tokenizer's config": (lambda f: (f / "tokenizer_config.json").unlink(), "no tokenizer_config.json"),
    "no image processor": (lambda f: (f / "processor_config.json").unlink(), "does not load"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "does not load"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
    "template fails": (template("{{ raise_exception('boo') }}"), "TemplateError: boo"),
    "template attacks": (template("{{ ''.__class__.__mro__ }}"), "SecurityError"),
    "template divides": (template("{{ 1 / 0 }}"), "ZeroDivisionError"),
    "template recurses": (template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"), "RecursionError"),
    "template forgets": (template("Hello"), "does not show the user's question"),
    "end beyond the vocabulary": (
        lambda f: edit(f / "generation_config.json", lambda found: found.update(eos_token_id=99_999)),
        "eos_token_id=99999",
    ),
    "another image token": (config(lambda found: found.update(image_token_id=7)), "image_token_id=7"),
    "a file outside": (
        lambda f: index((f / "model.safetensors").rename(f / "a.safetensors").parent, "../a.safetensors"),
        "not a file of this folder",
    ),
}


@pytest.mark.parametrize("which", DAMAGED)
def test_a_folder_that_is_no_whole_model_is_refused_before_its_weights_are_read(which: str, folder: Path) -> None:
    damage, words = DAMAGED[which]
    damage(folder)
    with pytest.raises(ModelError, match=words) as raised:
        check_model_folder(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_a_template_that_never_ends_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_files, "RENDER_SECONDS", 0.3)
    loop = "{% for i in range(9999) %}{% for j in range(999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    with pytest.raises(ModelError, match="takes over"):
        check_model_folder(folder)


def test_older_names_and_a_stored_tied_head_are_accepted(folder: Path) -> None:
    newer = {"model.": "model.language_model.", "visual.": "model.visual."}

    def rename(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in newer.items() if name.startswith(old)), name)

    weights(lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()})(folder)
    check_model_folder(folder)
    weights(lambda w: {rename(name): x for name, x in w.items()})(folder)
    check_model_folder(folder)


def test_a_changed_folder_is_checked_again(folder: Path) -> None:
    check_model_folder(folder)
    DAMAGED["one missing"][0](folder)
    with pytest.raises(ModelError, match="1 missing"):
        check_model_folder(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    weights(lambda w: {**w, NORM: torch.full((128,), float("nan"))})(folder)
    with pytest.raises(NotFinite, match="norm.weight is not finite: .*fetch"):
        Policy.load(folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "nonsense", "a/b/c/d", "../nowhere", ""])
def test_a_name_that_resolves_nowhere_is_a_model_error(name: str) -> None:
    with pytest.raises(ModelError, match="model="):
        resolve_model(name)


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="config.json"):
        resolve_model(str(tmp_path / "weights.safetensors"))


SHIPPED = (MODEL_DIR / "chat_template.jinja").read_text()
NO_SYSTEM = SHIPPED.replace("in messages", "in messages if message['role'] == 'user'")
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + SHIPPED
TWICE = SHIPPED.replace("in messages", "in (messages + messages if twice is defined else messages)")


@pytest.mark.parametrize(
    ("template", "prompt", "says"),
    [
        (None, {"template_arguments": {"enable_thinkng": False}}, "has no 'enable_thinkng'; leave it out"),
        (None, {"system": "Stop<|im_end|>"}, r"prompt.system: it contains the special token <\|im_end\|>; take it out"),
        (None, {"system": "See <|image_pad|>"}, r"prompt.system: it contains the special token <\|image_pad\|>"),
        (NO_SYSTEM, {"system": "Be exact."}, "prompt.system: the chat template of .* leaves it out"),
        (REFUSING, {"system": "Be exact."}, r"cannot be used \(.*no system role.*\); leave out what it does not take"),
        (TWICE, {"template_arguments": {"twice": True}}, "does not show the user's question once"),
    ],
)
def test_what_the_chat_template_does_not_take_is_refused_before_the_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, template: str | None, prompt: dict[str, Any], says: str
) -> None:
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(model, "_load_whole", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(ModelError, match=says):
        Policy.load(folder, prompt=PromptConfig.model_validate(prompt))


def test_a_system_message_is_asked_and_not_saved(folder: Path, tmp_path: Path) -> None:
    plain, told = Policy.load(folder), Policy.load(folder, prompt=PromptConfig(system="Read slowly."))
    question = Question("q", (), "Add.", AnswerSpec("integer"))
    ids = [policy.prompt(question).ids_L for policy in (plain, told)]
    assert told.tokenizer.decode(ids[1]).endswith("Read slowly.<|im_end|>\n" + plain.tokenizer.decode(ids[0]))
    for name, policy in (("plain", plain), ("told", told)):
        policy.save(tmp_path / name)
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "told" / path.name).read_bytes(), path.name
