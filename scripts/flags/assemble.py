"""Assemble the model of the benchmark `flags`: SmolLM2's language model behind a small vision tower.

    python scripts/flags/assemble.py --language DIR --output DIR [--tower benchmarks/flags_tower]

`--language` is an ordinary Hugging Face folder of a small Llama with tied embeddings, such as SmolLM2-135M-Instruct.
Its weights become the language model of a Qwen2.5-VL: the same shapes, biases of zero, and M-RoPE, which is plain RoPE
on text. `--tower` holds the trained tower and merger, config.json and model.safetensors. The folder that is written
loads like any Qwen2.5-VL; no weight of the language model is changed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mm_spine import files
from mm_spine.compat import heal_torchvision

# Before transformers imports it.
heal_torchvision()

TOWER = Path(__file__).resolve().parents[2] / "benchmarks" / "flags_tower"

VISION_TOKENS: Mapping[str, str] = {
    "<|vision_start|>": "<jupyter_start>",
    "<|vision_end|>": "<jupyter_text>",
    "<|vision_pad|>": "<jupyter_code>",
    "<|image_pad|>": "<jupyter_output>",
    "<|video_pad|>": "<jupyter_script>",
}
"""Each vision token takes the id of a special token for source code files, which no chat holds."""

# Without <|vision_start|> and <|vision_end|> around them: this language model has never read those, and with them it
# names fewer countries whose names stand in the place of an image (docs/results/flags.md).
# Nor with a space before them, since the first token of a name within a sentence begins with one.
_PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image_pad|>{% elif part['type'] == 'video' %}<|video_pad|>"
    "{% elif not loop.last and message['content'][loop.index]['type'] in ('image', 'video') %}"
    "{{ part['text'].rstrip(' ') }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    f"<|im_start|>{{{{ message['role'] }}}}\n{_PARTS}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own template, for messages in parts too."""


def assemble(language: Path, output: Path, tower: Path = TOWER) -> None:
    """Write the folder of the whole model, whole or not at all; one that is there is replaced.

    Raises ValueError for a language model of another kind or shape, or one that lacks weights.
    """
    model = with_tower(language, json.loads((tower / "config.json").read_text()))
    state = {name: value.float() for name, value in load_file(tower / "model.safetensors").items()}
    model.model.visual.load_state_dict(state)
    with files.atomic_folder(output, output.with_name(f".{output.name}.unfinished")) as unfinished:
        model.save_pretrained(unfinished)
        build_processor(language, model.config).save_pretrained(unfinished)


def with_tower(language: Path, vision: Mapping[str, Any]) -> Any:
    """Return a Qwen2_5_VLForConditionalGeneration in fp32 with the weights of `language` and a random tower.

    `vision` is the tower's configuration. Raises ValueError for a language model of another kind or shape.
    """
    from transformers import (
        AutoModelForCausalLM,
        GenerationConfig,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    llama, loaded = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32, output_loading_info=True)
    ids = _token_ids(language)
    config = Qwen2_5_VLConfig(
        text_config=_text_config(llama.config),
        vision_config={**vision, "out_hidden_size": llama.config.hidden_size},
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    # Weights that are not in the file would be random.
    if loaded["missing_keys"]:
        raise ValueError(f"{language}: no weight {min(loaded['missing_keys'])}")
    model = Qwen2_5_VLForConditionalGeneration(config)
    _fill(model.model.language_model, llama.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=llama.config.bos_token_id,
        eos_token_id=llama.config.eos_token_id,
        pad_token_id=llama.config.pad_token_id,
    )
    return model.eval()


def mrope_sections(head_dim: int) -> list[int]:
    """Share the frequencies of RoPE among time, height and width, as 1, 1.5 and 1.5: (8, 12, 12) for a head of 64.

    Qwen2.5-VL has (16, 24, 24) for a head of 128.
    """
    time = head_dim // 8
    height = (head_dim // 2 - time) // 2
    return [time, height, head_dim // 2 - time - height]


def build_processor(language: Path, config: Any) -> Any:
    """Build Qwen2.5-VL's processor around the tokenizer of `language`, with the vision tokens in it."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    vision = config.vision_config
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    # From one image token to 64; the pictures of `flags` have 6.
    pixels = {"shortest_edge": token, "longest_edge": 64 * token}
    sizes = {"size": pixels, "patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=_tokenizer(language),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def _text_config(llama: Any) -> dict[str, Any]:
    """Return the configuration of Qwen2.5-VL's language model that computes what `llama` does. Raises ValueError."""
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id",
        "pad_token_id",
    )  # fmt: skip
    rope = llama.rope_parameters
    wanted = {
        "model_type": (llama.model_type, "llama"),
        "tie_word_embeddings": (llama.tie_word_embeddings, True),
        "attention_bias": (llama.attention_bias, False),
        "mlp_bias": (llama.mlp_bias, False),
        "head_dim": (llama.head_dim, llama.hidden_size // llama.num_attention_heads),
        "rope_type": (rope["rope_type"], "default"),
    }
    for key, (found, needed) in wanted.items():
        if found != needed:
            raise ValueError(f"config.json of the language model says {key}={found!r}; only {needed!r} fits Qwen2.5-VL")
    rope = {**rope, "mrope_section": mrope_sections(llama.head_dim)}
    return {**{key: getattr(llama, key) for key in kept}, "rope_parameters": rope, "tie_word_embeddings": True}


@torch.no_grad()
def _fill(language_model: Any, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of a Llama into `language_model`; the biases that it lacks become zero. Raises ValueError."""
    missing, unexpected = language_model.load_state_dict(state, strict=False)
    biases = [name for name in missing if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))]
    if unexpected or len(biases) != len(missing):
        raise ValueError(f"the language model's weights do not fit: {sorted({*missing, *unexpected} - {*biases})[:3]}")
    for name in biases:
        language_model.get_parameter(name).zero_()


def _token_ids(language: Path) -> dict[str, int]:
    """Return vision token -> the id that it takes over. Raises ValueError where the tokenizer lacks one of them."""
    added = json.loads((language / "tokenizer.json").read_text())["added_tokens"]
    found = {token["content"]: int(token["id"]) for token in added}
    absent = [old for old in VISION_TOKENS.values() if old not in found]
    if absent:
        raise ValueError(f"{language / 'tokenizer.json'}: no special token {absent[0]}, whose id a vision token takes")
    return {new: found[old] for new, old in VISION_TOKENS.items()}


def _tokenizer(language: Path) -> Any:
    """Return the tokenizer of `language` with five of its special tokens renamed."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads((language / "tokenizer.json").read_text())
    new = {old: token for token, old in VISION_TOKENS.items()}
    content["model"]["vocab"] = {new.get(token, token): i for token, i in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    settings = json.loads((language / "tokenizer_config.json").read_text())
    named = {key: settings[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if settings.get(key)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        extra_special_tokens=list(VISION_TOKENS),
        **named,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tower", type=Path, default=TOWER)
    options = parser.parse_args(arguments)
    try:
        assemble(options.language, options.output, options.tower)
    except (ValueError, OSError) as error:
        raise SystemExit(f"assemble.py: {error}") from error
    print(f"{options.output}: a Qwen2.5-VL that reads flags")


if __name__ == "__main__":
    main()
