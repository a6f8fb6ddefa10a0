"""The model of `flags`: a Llama's weights behind a small tower compute what the Llama does, and train repeatably."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exactness import InDouble, assert_exact, double_of
from safetensors.torch import load_file, save_file

from mm_spine.benchmarks import flag_pictures, flags
from mm_spine.policy.model import Policy
from mm_spine.types import Question

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "flags"))

import assemble
import tower
import train_tower

REAL = "MM_SPINE_SMOLLM2"
"""The environment variable that names a folder of SmolLM2-135M-Instruct."""

TEXT = "What is the capital of France? It is Paris, and that of Peru is Lima."


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights, and a tokenizer with the special tokens of SmolLM2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *assemble.VISION_TOKENS.values()]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    words = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT, assemble.CHAT_TEMPLATE, *(country.name for country in flags.SHOWN)], words)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=made.get_vocab_size(), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, initializer_range=0.3, rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def assembled(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole model around the tiny Llama, with a random tower in fp16."""
    part, whole = tmp_path_factory.mktemp("tower"), tmp_path_factory.mktemp("whole")
    weights = tower.build_tower(64, seed=0).state_dict()
    save_file({name: value.half() for name, value in weights.items()}, part / "model.safetensors")
    (part / "config.json").write_text(json.dumps(tower.VISION))
    assemble.assemble(language, whole, part)
    return whole


@pytest.mark.parametrize("real", [False, True])
def test_text_has_the_logits_of_the_llama(language: Path, real: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if real and REAL not in os.environ:
        pytest.skip(f"{REAL} names no folder of SmolLM2-135M-Instruct")
    folder = Path(os.environ[REAL]) if real else language
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    whole = assemble.with_tower(folder, tower.VISION)
    with torch.no_grad():
        ours, plain = whole(input_ids=ids).logits, llama(ids).logits
        with InDouble():
            exact = double_of(llama)(ids).logits
    assert_exact([ours], [plain], [exact], "logits of text")
    assert float(plain.std()) > 0.1 and whole.lm_head.weight is whole.get_input_embeddings().weight


def test_the_folder_loads_and_writes_the_same_text(language: Path, assembled: Path) -> None:
    from transformers import AutoProcessor, AutoTokenizer

    policy = Policy.load(assembled)
    tokenizer = AutoTokenizer.from_pretrained(language)
    assert policy.end_ids == (2,) and len(policy.banned) == len(assemble.VISION_TOKENS)
    assert AutoProcessor.from_pretrained(assembled).tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    picture = flags.picture("tune", flags.CODES["tune"][0])
    prompt = policy.prompt(Question("q", picture, flags.KINDS["capital"].prompt, flags.KINDS["capital"].spec))
    assert len(prompt.image_at_I) == tower.TOKENS == 6
    assert policy.tokenizer.decode(prompt.ids_L).endswith(
        "user\nWhat is the capital of" + "<|image_pad|>" * 6 + "?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_patches_are_those_of_the_image_processor() -> None:
    from transformers import Qwen2VLImageProcessor

    pictures = [flag_pictures.plain(np.random.default_rng(i), code) for i, code in enumerate(("FR", "NP"))]
    sizes = {"shortest_edge": 1600, "longest_edge": 102_400}
    processor = Qwen2VLImageProcessor(patch_size=tower.PATCH, merge_size=tower.MERGE, size=sizes)
    wanted = processor(images=pictures, return_tensors="pt")
    found, grids = tower.patches(pictures)
    torch.testing.assert_close(found, wanted["pixel_values"], rtol=0, atol=1e-5)
    assert grids.tolist() == wanted["image_grid_thw"].tolist()


def test_wrong_language_models_are_named(language: Path, tmp_path: Path) -> None:
    for path in language.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    with pytest.raises(ValueError, match="tie_word_embeddings=False"):
        assemble.with_tower(tmp_path, tower.VISION)
    vocabulary = (language / "tokenizer.json").read_text().replace("<jupyter_code>", "<other>")
    (tmp_path / "tokenizer.json").write_text(vocabulary)
    with pytest.raises(ValueError, match="no special token <jupyter_code>"):
        assemble._token_ids(tmp_path)


def test_a_language_model_that_lacks_a_weight_is_refused_and_nothing_is_written(language: Path, tmp_path: Path) -> None:
    damaged, name = tmp_path / "damaged", "model.layers.0.mlp.up_proj.weight"
    shutil.copytree(language, damaged)
    state = load_file(damaged / "model.safetensors")
    del state[name]
    save_file(state, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"damaged: no weight {name}"):
        assemble.assemble(damaged, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def options(language: Path, output: Path, **more: Any) -> argparse.Namespace:
    output.mkdir(exist_ok=True)
    given = {
        "language": language,
        "output": output,
        "seed": 3,
        "steps": 2,
        "refine": 2,
        "batch": 4,
        "lr": 1e-3,
        "warmup": 1,
    }
    return argparse.Namespace(**{**given, **more})


def test_a_resumed_training_is_that_which_was_not_interrupted(
    language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def photograph(*_: Any) -> None:
        raise AssertionError("the camera's shift was trained on")

    monkeypatch.setattr(flag_pictures, "photograph", photograph)
    whole = train_tower.Trainer(options(language, tmp_path / "whole"))
    losses = [whole.step()[0] for _ in range(4)]
    part = train_tower.Trainer(options(language, tmp_path / "part"))
    assert [part.step()[0] for _ in range(2)] == losses[:2]
    part.save()
    rest = train_tower.Trainer(options(language, tmp_path / "part"))
    rest.resume()
    assert [rest.step()[0] for _ in range(2)] == losses[2:]
    whole.write()
    rest.write()
    ours, its = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(ours[name], its[name]) for name in ours)
    with pytest.raises(ValueError, match="same options"):
        train_tower.Trainer(options(language, tmp_path / "part", lr=1e-4)).resume()


def test_names_are_told_apart_by_their_embeddings(language: Path) -> None:
    names = train_tower.name_embeddings(language, flags.SHOWN)
    assert names.shape == (192, tower.TOKENS, 64)
    far = train_tower.distances(names, names)
    assert torch.equal(far.argmin(1), torch.arange(192))
    assert abs(float(far.sum()) / (192 * 191) - 1) < 0.02
