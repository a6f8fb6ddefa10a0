"""Build what the benchmarks run on: a random Qwen2.5-VL of given sizes, images, saved rollouts and rewards.

The text model has the proportions of Qwen2.5-VL-3B (MLP 5.375 times the width, two key-value heads), the tower's MLP
is fitted until an image token costs the tower 0.9 of what it costs the text model, as in the 3B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.config import MethodConfig, ModelConfig
from mm_spine.draws import generator
from mm_spine.methods.apply import choose_tokens
from mm_spine.methods.credit import advantages
from mm_spine.methods.method import Batch
from mm_spine.methods.table import find
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.model import DTYPES, Policy
from mm_spine.types import AnswerSpec, Group, Question, Rollout, Vote

TOKEN_PIXELS = 28
TOWER_SHARE = 0.9
WINDOW_TOKENS = 16
MOST_PIXELS = TOKEN_PIXELS**2 * 16384
LOGIT_BYTES = 256 * 2**20
PROMPT = "Which of the two digits is the larger? Explain."
STD_EPS = 1e-4
"""What TRL adds to the standard deviation of a group's rewards, so that all variants have the same advantages."""


@dataclass(frozen=True)
class Sizes:
    """One configuration; `selected` is a share of the response tokens, the others are counts."""

    image_tokens: int = 1024
    rollouts: int = 16
    response_tokens: int = 64
    vocab: int = 2048
    hidden: int = 256
    layers: int = 4
    selected: float = 0.2
    dtype: str = "float32"
    questions: int = 1
    seed: int = 0

    @property
    def head_dim(self) -> int:
        return next(width for width in (128, 64, 32, 16) if self.hidden % width == 0 and self.hidden // width >= 4)

    @property
    def heads(self) -> int:
        return self.hidden // self.head_dim

    @property
    def key_heads(self) -> int:
        return 2

    @property
    def intermediate(self) -> int:
        return round(5.375 * self.hidden)

    @property
    def grid(self) -> tuple[int, int]:
        """Return the image tokens (high, wide), as square as possible."""
        high = max(h for h in range(1, math.isqrt(self.image_tokens) + 1) if self.image_tokens % h == 0)
        return high, self.image_tokens // high


class Tower(NamedTuple):
    """A vision tower without full attention: over all patches it would be most of so small a tower's work."""

    depth: int
    hidden: int
    heads: int
    intermediate: int

    def flops(self, image_tokens: int, out: int) -> float:
        """Count the multiply-adds x 2 of one image token: four patches through the blocks, then the merger."""
        width, window = self.hidden, 4 * min(WINDOW_TOKENS**2, image_tokens)
        block = 2 * (4 * width**2 + 3 * width * self.intermediate) + 4 * window * width
        merger = 2 * (16 * width**2 + 4 * width * out)
        return 4 * (2 * 1176 * width + self.depth * block) + merger


class Work(NamedTuple):
    """A step's saved rollouts with rewards and advantages, and which of their tokens are trained."""

    groups: list[Group]
    tokens: list[list[Tokens]]


def text_flops(sizes: Sizes, context: int) -> float:
    """Count the multiply-adds x 2 of one token in the text model, attending to half of `context` on average."""
    kv = sizes.key_heads * sizes.head_dim
    linear = 2 * (2 * sizes.hidden**2 + 2 * sizes.hidden * kv + 3 * sizes.hidden * sizes.intermediate)
    return sizes.layers * (linear + 4 * sizes.hidden * context / 2)


def fit_tower(sizes: Sizes) -> Tower:
    """Find the tower nearest to the 3B's proportions whose image token costs `TOWER_SHARE` of the text model's."""
    wanted = TOWER_SHARE * text_flops(sizes, sizes.image_tokens)
    return min((_fitted(sizes, d, w, wanted) for d in range(1, sizes.layers + 1) for w in _widths(sizes)), key=_oddness)


def _widths(sizes: Sizes) -> range:
    step = 80 if sizes.hidden >= 1024 else 32 if sizes.hidden >= 256 else 16
    return range(step, sizes.hidden + 1, step)


def _fitted(sizes: Sizes, depth: int, width: int, wanted: float) -> Tower:
    head = 80 if sizes.hidden >= 1024 else 32 if sizes.hidden >= 256 else 16
    bare, one = (Tower(depth, width, width // head, i).flops(sizes.image_tokens, sizes.hidden) for i in (0, 1))
    return Tower(depth, width, width // head, max(1, round((wanted - bare) / (one - bare))))


def _oddness(tower: Tower) -> float:
    """Return how far the MLP is from 2.67 times the width, as the logarithm of the factor."""
    return abs(math.log(tower.intermediate / tower.hidden / 2.67))


def make_processor() -> Any:
    """Load the shipped processor, without its limits on the number of image tokens."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(MODEL_DIR)
    processor.image_processor.size = {"shortest_edge": TOKEN_PIXELS**2, "longest_edge": MOST_PIXELS}
    return processor


def make_config(sizes: Sizes) -> Any:
    """Make the configuration of a Qwen2.5-VL of these sizes from that of the shipped model."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(MODEL_DIR)
    text, vision, tower = config.text_config, config.vision_config, fit_tower(sizes)
    if sizes.vocab < text.vocab_size:
        raise SystemExit(f"--vocab {sizes.vocab}: the tokenizer already has {text.vocab_size} tokens; give more")
    text.vocab_size, text.hidden_size, text.intermediate_size = sizes.vocab, sizes.hidden, sizes.intermediate
    text.num_hidden_layers, text.layer_types = sizes.layers, ["full_attention"] * sizes.layers
    text.num_attention_heads, text.num_key_value_heads = sizes.heads, sizes.key_heads
    text.head_dim, text.max_position_embeddings = sizes.head_dim, 32768
    quarter = sizes.head_dim // 8
    text.rope_parameters = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [
            quarter,
            (half := (sizes.head_dim // 2 - quarter) // 2),
            sizes.head_dim // 2 - quarter - half,
        ],
    }
    vision.depth, vision.hidden_size, vision.intermediate_size = tower.depth, tower.hidden, tower.intermediate
    vision.num_heads, vision.out_hidden_size = tower.heads, sizes.hidden
    vision.fullatt_block_indexes, vision.window_size = [], WINDOW_TOKENS * TOKEN_PIXELS
    return config


def make_model(sizes: Sizes, device: torch.device, config: Any = None) -> Any:
    """Build a random model on `device`, the same for the same sizes; it trains as the real one does.

    `config` defaults to `make_config(sizes)`.
    """
    from transformers import AutoModelForImageTextToText, GenerationConfig

    config = make_config(sizes) if config is None else config
    # Made on the device: a model of several billion weights takes minutes to make on a CPU.
    with device:
        model: Any = AutoModelForImageTextToText.from_config(
            config, dtype=DTYPES[sizes.dtype], attn_implementation="sdpa"
        )
    model.generation_config = GenerationConfig.from_pretrained(MODEL_DIR)
    model.to(device)
    _randomise(model, torch.Generator(device).manual_seed(sizes.seed))
    model.model.visual.requires_grad_(False)
    return model.eval()


def without_end(model: Any, processor: Any) -> None:
    """Make the only end token one that every sampler bans, so that all responses reach their limit of tokens."""
    processor.tokenizer.eos_token = "<|image_pad|>"
    model.generation_config.eos_token_id = model.config.image_token_id
    model.config.text_config.eos_token_id = model.config.image_token_id
    closed = "{% if message['role'] == 'user' %}<|im_end|>{% endif %}"
    processor.chat_template = processor.chat_template.replace("<|im_end|>", closed)


@torch.no_grad()
def _randomise(model: Any, random: torch.Generator) -> None:
    """Draw every tensor scaled by its width, so that no gradient vanishes and logits have a spread of about 1."""
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
        noise = torch.randn(parameter.shape, generator=random, device=parameter.device) / math.sqrt(fan_in)
        parameter.copy_(noise + 1 if "norm" in name or "ln_q" in name else noise)


def make_policy(model: Any, processor: Any, sizes: Sizes) -> Policy:
    """Make our policy for `model`."""
    limits = {"min_pixels": TOKEN_PIXELS**2, "max_pixels": MOST_PIXELS}
    return Policy(model, processor, ModelConfig.model_validate({"dtype": sizes.dtype, **limits}))


def copy_of(model: Any) -> Any:
    """Copy a model."""
    return deepcopy(model)


def adamw(model: Any) -> torch.optim.Optimizer:
    """Make fused AdamW with its state allocated and learning rate 0: every step starts from the same weights."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=0.0, fused=True)
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def make_questions(sizes: Sizes) -> list[Question]:
    """Make questions about random images of exactly `image_tokens` tokens."""
    high, wide = (TOKEN_PIXELS * side for side in sizes.grid)
    rng = generator(sizes.seed, "images")
    shape = (sizes.questions, high, wide, 3)
    images = [Image.fromarray(pixels) for pixels in rng.integers(0, 256, shape, dtype=np.uint8)]
    return [Question(f"q{i}", (image,), PROMPT, AnswerSpec(kind="integer")) for i, image in enumerate(images)]


def make_work(sizes: Sizes, options: MethodConfig) -> Work:
    """Make distinct random responses of equal length, half of them right, and select a share of tokens at random."""
    groups = [_group(question, sizes) for question in make_questions(sizes)]
    rewards = [group.rewards for group in groups if group.rewards is not None]
    shaped = advantages(rewards, options.advantage, options.std, options.eps)
    groups = [replace(group, advantages=a) for group, a in zip(groups, shaped, strict=True)]
    return Work(groups, choose_tokens(Batch(groups, seed=sizes.seed), find("random-mask"), options))


def _group(question: Question, sizes: Sizes) -> Group:
    rng = generator(sizes.seed, "rollouts", question.id)
    n, length = sizes.rollouts, sizes.response_tokens
    ids = np.concatenate([np.arange(410), np.arange(423, sizes.vocab)])  # neither end token nor specials
    drawn = [(*rng.choice(ids, length - 1).tolist(), 415) for _ in range(n)]
    logp = -np.abs(rng.normal(size=(n, length))).astype(np.float32)
    made = (Rollout(question.id, i, tuple(t), "", logp[i], logp[i], "stop") for i, t in enumerate(drawn))
    rewards = torch.zeros(n).index_fill(0, torch.from_numpy(rng.permutation(n)[: max(n // 2, 1)]), 1.0)
    return Group(question, tuple(made), (None,) * n, Vote(None, 0.0, {}, 0.0, 0), rewards, parsed=(None,) * n)


def rows_at_once(group: Group, vocab: int) -> int:
    """Return how many rollouts have at most `LOGIT_BYTES` of fp32 logits, at least 1."""
    longest = max(len(rollout.token_ids) for rollout in group.rollouts)
    return max(1, LOGIT_BYTES // (4 * vocab * (longest + 1)))


def doubled(work: Work) -> Work:
    """Replace the second half of each group by copies of the first half's responses."""
    groups, tokens = [], []
    for group, chosen in zip(work.groups, work.tokens, strict=True):
        half = len(group.rollouts) // 2
        places = [*range(half), *range(half)]
        groups.append(_taken(group, places))
        tokens.append([chosen[i] for i in places])
    return Work(groups, tokens)


def _taken(group: Group, places: Sequence[int]) -> Group:
    """Take the rollouts at `places`, in order, each with its credit."""
    kept = tuple(group.rollouts[i] for i in places)
    assert group.rewards is not None and group.advantages is not None
    at = torch.tensor(places)
    nothing = (None,) * len(kept)
    return replace(group, rollouts=kept, answers=nothing, parsed=nothing, rewards=group.rewards[at],
                 advantages=group.advantages[at])  # fmt: skip


def half_unanimous(work: Work) -> Work:
    """Remove the preference from every second group, as when all its rollouts agree."""
    groups = [
        group if i % 2 else replace(group, advantages=torch.zeros(len(group.rollouts)))
        for i, group in enumerate(work.groups)
    ]
    return Work(groups, work.tokens)
