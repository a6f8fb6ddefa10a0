"""`scripts/convert_gguf.py`: a folder whose model gives the logits of the GGUF file that it was made from."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from loaded_scripts import load_script
from transformers import AutoModelForCausalLM, AutoTokenizer

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")

HIDDEN, HEADS, INNER, LAYERS = 32, 4, 64, 2
TOKENS = ["<|end|>", "Ġ", "a", "b", "c", "Ġa", "ab"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def script() -> ModuleType:
    return load_script("convert_gguf")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "file" / "tiny.gguf")


def write(path: Path, without: str = "") -> Path:
    """Write a Llama of two layers with random weights, one matrix of each quantised, but for the tensor `without`."""
    rng = np.random.default_rng(0)
    path.parent.mkdir()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, *[1] * (len(TOKENS) - 1)])
    writer.add_token_merges(["Ġ a", "a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        if name != without:
            writer.add_tensor(f"{name}.weight", values)

    add("token_embd", len(TOKENS), HIDDEN)
    add("output_norm", HIDDEN)
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}", HIDDEN, HIDDEN)
        add(f"blk.{i}.attn_norm", HIDDEN)
        add(f"blk.{i}.ffn_norm", HIDDEN)
        add(f"blk.{i}.ffn_gate", INNER, HIDDEN)
        add(f"blk.{i}.ffn_down", HIDDEN, INNER)
        up = gguf.quants.quantize(
            rng.normal(0, 0.3, (INNER, HIDDEN)).astype(np.float32), gguf.GGMLQuantizationType.Q4_1
        )
        writer.add_tensor(f"blk.{i}.ffn_up.weight", up, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_folder_holds_the_model_of_the_file(script: ModuleType, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert script.main([str(file), str(folder), "--about", "Made for a test."]) == 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    wanted = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    ids = torch.tensor([[2, 3, 4, 5, 1, 6]])
    logits = model(ids).logits
    assert torch.equal(logits, wanted(ids).logits) and logits.std() > 0.01
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ab a").input_ids == [6, 5] and tokenizer.chat_template == TEMPLATE
    assert "Made for a test." in (folder / "README.md").read_text()
    # What was saved can be trained.
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_file_that_lacks_a_weight_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = write(tmp_path / "damaged" / "tiny.gguf", without="blk.1.ffn_gate")
    assert script.main([str(damaged), str(tmp_path / "model")]) == 2
    assert "tiny.gguf: no weight model.layers.1.mlp.gate_proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_folder_with_a_model_is_left_alone(script: ModuleType, file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert script.main([str(file), str(tmp_path)]) == 0 and (tmp_path / "config.json").read_text() == "{}"


def test_what_is_no_model_is_refused_with_a_sentence(
    script: ModuleType, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    assert script.main([str(tmp_path / "text.gguf"), str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err.endswith("text.gguf: not a GGUF file\n")
    assert script.main([str(tmp_path / "absent.gguf"), str(tmp_path / "model")]) == 2
    assert script.main([str(file), str(file.parent)]) == 2
    assert "in the way, and holds no model" in capsys.readouterr().err and file.exists()
