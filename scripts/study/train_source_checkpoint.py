r"""Build the tiny Qwen2.5-VL that `digits` starts from, out of PRINTED digits alone.

    python scripts/study/train_source_checkpoint.py --output DIR [--seed 0] [--recipe two-habits|direct-heavy]

Three stages, about ten minutes on two CPU cores: the tower learns to read printed digits under an auxiliary
head; the language model learns to reason step by step about them; a few last steps add a second habit, answering
directly, which stays undertrained on purpose. No handwritten pixel and no handwritten label is trained on. The
finished checkpoint is measured on the `tune` split of `digits`, where labels may be looked at, and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from mm_spine.benchmarks import digits
from mm_spine.processors.answers import parse
from mm_spine.types import Question

log = logging.getLogger("train_source_checkpoint")

FONT_PACKAGES: Mapping[str, str] = {
    "fonts-averia-sans-gwf": "OFL-1.1",
    "fonts-breip": "OFL-1.0",
    "fonts-bwht": "OFL-1.1",
    "fonts-cabin": "OFL-1.1",
    "fonts-cantarell": "OFL-1.1",
    "fonts-comfortaa": "OFL-1.1",
    "fonts-comic-neue": "OFL-1.1",
    "fonts-courier-prime": "OFL-1.1",
    "fonts-dancingscript": "OFL-1.1",
    "fonts-dejavu-core": "Bitstream Vera",
    "fonts-dkg-handwriting": "OFL-1.1",
    "fonts-dosis": "OFL-1.1",
    "fonts-essays1743": "OFL-1.1 or LGPL-2.1",
    "fonts-eurofurence": "OFL-1.1",
    "fonts-fantasque-sans": "OFL-1.1",
    "fonts-femkeklaver": "CC-BY-SA-3.0",
    "fonts-georgewilliams": "OFL-1.1 or BSD-3-clause",
    "fonts-havana": "OFL-1.1",
    "fonts-humor-sans": "OFL-1.1",
    "fonts-inconsolata": "OFL-1.0",
    "fonts-junction": "OFL-1.1",
    "fonts-karla": "OFL-1.1",
    "fonts-kaushanscript": "OFL-1.1",
    "fonts-klaudia-berenika": "OFL-1.1",
    "fonts-kristi": "OFL-1.1",
    "fonts-lato": "OFL-1.1",
    "fonts-leckerli-one": "OFL-1.1",
    "fonts-lobstertwo": "OFL-1.1",
    "fonts-monofur": "OFL-1.1",
    "fonts-okolaks": "OFL-1.1",
    "fonts-open-sans": "Apache-2.0",
    "fonts-opendin": "OFL-1.1",
    "fonts-play": "OFL-1.1",
    "fonts-quicksand": "OFL-1.1",
    "fonts-radisnoir": "OFL-1.1",
    "fonts-routed-gothic": "OFL-1.1",
    "fonts-rufscript": "GPL-3+ with font exception",
    "fonts-sil-andika": "OFL-1.1",
    "fonts-smc-chilanka": "OFL-1.1",
    "fonts-urw-base35": "AGPL-3 with font exception",
    "fonts-vollkorn": "OFL-1.1",
    "fonts-yanone-kaffeesatz": "OFL-1.1",
}
"""Debian packages whose digits are printed, with the licence of the fonts in each (its copyright file)."""

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Stage:
    """`steps` of AdamW with linear decay from `lr` after `warmup` steps; `direct`: share of direct targets."""

    steps: int
    lr: float
    batch: int
    warmup: int = 40
    direct: float = 0.0


@dataclass(frozen=True)
class Config:
    """Everything a checkpoint depends on. Sizes are in units, pixels or tokens."""

    seed: int = 0
    recipe: str = "two-habits"
    printed: int = 20_000
    files_per_package: int = 4
    vocabulary: int = 450
    vision: Stage = Stage(steps=1400, lr=2e-3, batch=64)
    reasoning: Stage = Stage(steps=1000, lr=2e-3, batch=64)
    habits: Stage = Stage(steps=120, lr=1e-3, batch=64, warmup=1, direct=0.4)
    openers: tuple[str, ...] = ("I see", "Digits")
    closers: tuple[str, ...] = ("So", "Thus")
    samples: int = 16


RECIPES: Mapping[str, Config] = {
    "two-habits": Config(),
    "direct-heavy": Config(recipe="direct-heavy", habits=replace(Config().habits, direct=0.8)),
}


# --- Printed digits -----------------------------------------------------------------------------------------------


class Printed(NamedTuple):
    """(N, 8, 8) ink 0-16 and (N,) classes."""

    ink: np.ndarray
    label: np.ndarray


def font_files(per_package: int) -> list[Path]:
    """At most `per_package` font files of each package, evenly spread. Exits naming the packages to install."""
    if shutil.which("dpkg-query") is None:
        raise SystemExit("the fonts come from Debian packages, and dpkg-query is not here; run on Debian or Ubuntu")
    files: list[Path] = []
    missing = []
    for package in FONT_PACKAGES:
        found = sorted(
            Path(line) for line in _dpkg("-L", package).splitlines() if line.lower().endswith((".ttf", ".otf"))
        )
        found = [path for path in found if path.is_file() and not path.is_symlink() and _has_digits(path)]
        missing += [] if found else [package]
        files += found[:: -(-len(found) // per_package)] if found else []
    if missing:
        raise SystemExit(f"fonts are missing; run: apt-get install -y --no-install-recommends {' '.join(missing)}")
    return files


def _dpkg(*query: str) -> str:
    """What Debian's package database answers; empty for a package that is not installed."""
    return subprocess.run(["dpkg-query", *query], capture_output=True, text=True, check=False).stdout


def _has_digits(path: Path) -> bool:
    """Whether the ten digits are ten different, non-empty glyphs of this font."""
    glyphs = {_glyph(path, digit).tobytes() for digit in range(10)}
    return len(glyphs) == 10


def _glyph(path: Path, digit: int, side: int = 64) -> np.ndarray:
    """One digit, 5/8 of `side` high and centred; (side, side) uint8."""
    font = ImageFont.truetype(str(path), side)
    left, top, right, bottom = font.getbbox(str(digit))
    wide = Image.new("L", (max(1, int(right - left)), max(1, int(bottom - top))))
    ImageDraw.Draw(wide).text((-left, -top), str(digit), fill=255, font=font)
    scale = 0.625 * side / max(wide.size)
    small = wide.resize((max(1, round(wide.width * scale)), max(1, round(wide.height * scale))))
    canvas = Image.new("L", (side, side))
    canvas.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return np.asarray(canvas)


def print_digits(config: Config) -> Printed:
    """`config.printed` distorted digits in random fonts, scanned like the handwriting: 32 x 32 bits, 4 x 4 counts."""
    glyphs = torch.tensor(np.stack([[_glyph(f, d) for d in range(10)] for f in font_files(config.files_per_package)]))
    rng = torch.Generator().manual_seed(config.seed)
    ink, label = [], []
    for start in range(0, config.printed, 2000):
        n = min(2000, config.printed - start)
        font = torch.randint(len(glyphs), (n,), generator=rng)
        digit = torch.randint(10, (n,), generator=rng)
        ink.append(scan(distort(glyphs[font, digit].float() / 255, rng)))
        label.append(digit)
    log.info("printed %d digits in %d fonts", config.printed, len(glyphs))
    return Printed(torch.cat(ink).numpy(), torch.cat(label).numpy())


def distort(glyphs_NSS: Tensor, rng: torch.Generator) -> Tensor:
    """Random rotation, shear, width, smooth elastic displacement and stroke width; (N, S, S) in [0, 1]."""
    n, side, _ = glyphs_NSS.shape
    angle, shear = 0.18 * torch.randn(2, n, generator=rng)
    width = torch.empty(n).uniform_(0.8, 1.5, generator=rng)
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros(n)
    rows = [torch.stack([cos * width, sin + 1.5 * shear, zero], -1), torch.stack([-sin * width, cos, zero], -1)]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, side, side], align_corners=False)
    bend = F.interpolate(0.06 * torch.randn(n, 2, 5, 5, generator=rng), size=(side, side), mode="bicubic")
    warped = F.grid_sample(glyphs_NSS[:, None], grid + bend.permute(0, 2, 3, 1), align_corners=False)
    return _restroke(warped[:, 0], rng)


def _restroke(ink_NSS: Tensor, rng: torch.Generator) -> Tensor:
    """Thin or thicken each digit until it covers about as much as a pen would: 12 +- 2.5 % of the canvas."""
    target = 0.12 + 0.025 * torch.randn(len(ink_NSS), generator=rng)
    choices = torch.stack(
        [-F.max_pool2d(-ink_NSS, 3, 1, 1), ink_NSS] + [F.max_pool2d(ink_NSS, k, 1, k // 2) for k in (3, 5, 7, 9)]
    )
    nearest = (choices.mean((-1, -2)) - target).abs().argmin(0)
    return choices[nearest, torch.arange(len(ink_NSS))]


def scan(ink_NSS: Tensor) -> Tensor:
    """Crop to the ink, scale to 32 pixels high and at most as wide, count 4 x 4 blocks: (N, 8, 8) in 0-16."""
    n, side, _ = ink_NSS.shape
    theta = torch.zeros(n, 2, 3)
    for axis, reduce_over in ((0, 1), (1, 2)):  # x: columns with ink, y: rows with ink
        inked = ink_NSS.amax(dim=reduce_over) > 0.5
        first = inked.int().argmax(-1)
        last = side - 1 - inked.flip(-1).int().argmax(-1)
        theta[:, axis, 2] = (first + last + 1) / side - 1
        theta[:, axis, axis] = (last - first + 1) / side
    theta[:, 0, 0] = torch.maximum(theta[:, 0, 0], theta[:, 1, 1])
    grid = F.affine_grid(theta, [n, 1, 32, 32], align_corners=False)
    bits = F.grid_sample(ink_NSS[:, None], grid, align_corners=False) > 0.5
    return (F.avg_pool2d(bits.float(), 4) * 16).round()[:, 0].to(torch.uint8)


# --- Targets ------------------------------------------------------------------------------------------------------


def reasoned(kind: str, shown: Sequence[int], opener: str, closer: str) -> str:
    """Read the digits, work, answer: 16 to 26 tokens."""
    read = " ".join(str(d) for d in shown)
    return f"{opener} {read}. {_WORK[kind](shown)}. {closer} {boxed(kind, shown)}."


def direct(kind: str, shown: Sequence[int]) -> str:
    """Answer at once: 8 to 10 tokens."""
    return f"The answer is {boxed(kind, shown)}."


def boxed(kind: str, shown: Sequence[int]) -> str:
    return f"\\boxed{{{digits.KINDS[kind].answer(shown)}}}"


def _running_sum(shown: Sequence[int]) -> str:
    return "Sum " + " ".join(str(sum(shown[:i])) for i in range(2, len(shown) + 1))


def _even(shown: Sequence[int]) -> str:
    return "Even " + (" ".join(str(d) for d in shown if d % 2 == 0) or "none")


_WORK: Mapping[str, Callable[[Sequence[int]], str]] = {
    "sum": _running_sum,
    "last": _running_sum,
    "over": _running_sum,
    "largest": lambda d: f"Largest {max(d)}",
    "smallest": lambda d: f"Smallest {min(d)}",
    "range": lambda d: f"Largest {max(d)} smallest {min(d)}",
    "even": _even,
}


# --- Processor and model ------------------------------------------------------------------------------------------


def build_processor(config: Config) -> Any:
    """Qwen2.5-VL's processor around a byte-level BPE trained on the questions and targets alone."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"shortest_edge": digits.CELL**2, "longest_edge": 64 * digits.CELL**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=_build_tokenizer(config),
        video_processor=Qwen2VLVideoProcessor(size=pixels),
        chat_template=CHAT_TEMPLATE,
    )


def _build_tokenizer(config: Config) -> Any:
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    seed: Any = Qwen2Tokenizer()._tokenizer  # Qwen's normaliser and split pattern
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary - len(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    seed.train_from_iterator(_corpus(config), trainer)
    model = json.loads(seed.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],  # type: ignore[misc]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,  # type: ignore[arg-type]
        extra_special_tokens=list(SPECIALS),
        model_max_length=512,
    )


def _corpus(config: Config) -> Iterator[str]:
    """Every question and the words of every target, each many times, so that words become tokens."""
    prompts = [p for kind in digits.KINDS.values() for p in kind.phrasings]
    targets = [reasoned(k, (4, 7), o, c) for k in digits.KINDS for o in config.openers for c in config.closers]
    targets += [reasoned("even", (1, 3), o, c) for o in config.openers for c in config.closers]
    yield from (prompts + targets + ["The answer is \\boxed{yes}.", "user\n", "assistant\n"] * 8) * 4


def build_model(processor: Any, seed: int) -> Any:
    """Random weights in the shipped sizes."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = dict(zip(SPECIALS, processor.tokenizer.convert_tokens_to_ids(list(SPECIALS)), strict=True))
    # theta 20, not 1e6: over 60 positions every frequency then turns far enough to tell neighbours apart.
    rope = {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]}
    text = {
        "vocab_size": len(processor.tokenizer), "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rope_parameters": rope,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 160, "intermediate_size": 256, "num_heads": 4, "patch_size": 14,
        "spatial_merge_size": 2, "out_hidden_size": 128, "fullatt_block_indexes": [2], "window_size": 112,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.generation_config.max_new_tokens = 40
    return model


def attend_equal_images(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float,
    cu_seq_lens_q: Tensor, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention within each of n equally large images, (1, H, n x S, D) -> (1, n x S, H, D), in one call.

    The tower otherwise loops over images, three times slower at this size; the result is the same.
    """
    n, heads = len(cu_seq_lens_q) - 1, query.shape[1]
    q, k, v = (x[0].unflatten(1, (n, -1)).transpose(0, 1) for x in (query, key, value))
    weights = torch.softmax((q @ k.transpose(-1, -2)).float() * scaling, dim=-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).reshape(1, -1, heads, v.shape[-1]), None


def use_fast_attention(model: Any) -> None:
    """While training: eager attention for text (its bfloat16 backward is twice as fast here), batched for images."""
    from transformers import AttentionInterface

    model.set_attn_implementation("eager")
    AttentionInterface.register("flash_equal_images", attend_equal_images)  # "flash": called once, with cu_seqlens
    model.model.visual.config._attn_implementation = "flash_equal_images"


# --- Training -----------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """B composites of k digits: patches (4kB, 1176), grids (B, 3), tokens and targets (B, L), -100 not a target."""

    patches: Tensor
    grids: Tensor
    ids: Tensor
    targets: Tensor


class Teacher:
    """Draws batches of printed composites; every draw comes from its own generator."""

    def __init__(self, processor: Any, printed: Printed, config: Config) -> None:
        self.processor, self.printed, self.config = processor, printed, config
        self.rng = np.random.default_rng(config.seed)
        self.prefix, self.suffix = (self.tokens(part) for part in _around(processor))
        self.pad, self.end = self.tokens("<|image_pad|>")[0], self.tokens("<|im_end|>")[0]
        self._known: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def composites(self, n: int, cells: int) -> tuple[Tensor, Tensor, np.ndarray]:
        """`n` images of `cells` printed digits: patches, grids, and the digits shown (n, cells)."""
        rows = self.rng.integers(0, len(self.printed.label), size=(n, cells))
        images = [digits.render(self.rng, self.printed.ink[row]) for row in rows]
        features = self.processor.image_processor(images=images, return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"], self.printed.label[rows]

    def batch(self, n: int, direct_share: float) -> Batch:
        """`n` questions about equally many digits, so that lengths are nearly equal where the habit is one."""
        cells = int(self.rng.integers(2, 4))
        patches, grids, shown = self.composites(n, cells)
        rows, targets = zip(*(self._sequence(row.tolist(), direct_share) for row in shown), strict=True)
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.end] * (length - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (length - len(row)) for row in targets])
        return Batch(patches, grids, ids, labels)

    def _sequence(self, shown: list[int], direct_share: float) -> tuple[list[int], list[int]]:
        kind = str(self.rng.choice(list(digits.KINDS)))
        question = str(self.rng.choice(digits.KINDS[kind].phrasings))
        opener, closer = str(self.rng.choice(self.config.openers)), str(self.rng.choice(self.config.closers))
        at_once = self.rng.random() < direct_share
        text = direct(kind, shown) if at_once else reasoned(kind, shown, opener, closer)
        prompt = self.prefix + self._remembered(question) + self.suffix
        at = prompt.index(self.pad)
        prompt = prompt[:at] + [self.pad] * len(shown) + prompt[at + 1 :]
        answer = [*self.tokens(text), self.end]
        return prompt + answer, [-100] * len(prompt) + answer

    def _remembered(self, text: str) -> list[int]:
        return self._known.setdefault(text, self.tokens(text))


def _around(processor: Any) -> tuple[str, str]:
    """What the chat template writes before and after the question."""
    content = [{"type": "image"}, {"type": "text", "text": "QUESTION"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    before, after = text.split("QUESTION")
    return before, after


def train_vision(model: Any, teacher: Teacher, stage: Stage) -> float:
    """Teach the tower to read one digit per image token under a linear head, which is then dropped."""
    head = nn.Linear(model.config.text_config.hidden_size, 10)
    parameters = [*model.model.visual.parameters(), *head.parameters()]

    def loss() -> tuple[Tensor, float]:
        patches, grids, shown = teacher.composites(stage.batch, int(teacher.rng.integers(2, 4)))
        label = torch.tensor(shown).flatten()
        logits = head(model.model.visual(patches, grid_thw=grids).pooler_output).float()
        return F.cross_entropy(logits, label), (logits.argmax(-1) == label).float().mean().item()

    return _train("vision", parameters, stage, loss)


def train_language(name: str, model: Any, teacher: Teacher, stage: Stage) -> float:
    """Teach questions and targets, tower included; the loss is over response tokens."""

    def loss() -> tuple[Tensor, float]:
        batch = teacher.batch(stage.batch, stage.direct)
        output = model(
            input_ids=batch.ids, pixel_values=batch.patches, image_grid_thw=batch.grids,
            mm_token_type_ids=(batch.ids == teacher.pad).int(), use_cache=False,
        )  # fmt: skip
        logits, target = output.logits[:, :-1].float().flatten(0, 1), batch.targets[:, 1:].flatten()
        asked = target != -100
        logits, target = logits[asked], target[asked]
        return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean().item()

    return _train(name, list(model.parameters()), stage, loss)


def _train(
    name: str, parameters: list[nn.Parameter], stage: Stage, loss_of_batch: Callable[[], tuple[Tensor, float]]
) -> float:
    """AdamW with linear warm-up and decay. Returns the mean accuracy over the last tenth of the steps."""
    optimiser = torch.optim.AdamW(parameters, lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / stage.warmup, (stage.steps - i) / stage.steps)
    )
    accuracies: list[float] = []
    began = time.monotonic()
    for step in range(stage.steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, accuracy = loss_of_batch()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        accuracies.append(accuracy)
        if (step + 1) % max(1, stage.steps // 10) == 0:
            rate = (time.monotonic() - began) / (step + 1)
            log.info("%s %d/%d: loss %.3f, accuracy %.3f, %.2f s a step", name, step + 1, stage.steps, loss.item(),
                     float(np.mean(accuracies[-stage.steps // 10 :])), rate)  # fmt: skip
    return float(np.mean(accuracies[-max(1, stage.steps // 10) :]))


# --- What came out ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Shares in [0, 1] on the tune split; `reasoned` and `direct` are of the sampled responses of that habit."""

    questions: int
    samples: int
    greedy: float
    pass_at_1: float
    maj_at_n: float
    reasoned_right: float
    direct_right: float
    direct_share: float
    direct_share_greedy: float
    unparsed: float


def measure(model: Any, processor: Any, config: Config) -> Figures:
    """Greedy and `config.samples` samples at temperature 1 for every tune question, by transformers' generate."""
    tune = digits.load("tune")
    torch.manual_seed(config.seed)
    greedy = answer_all(model, processor, tune.questions, 1)
    sampled = answer_all(model, processor, tune.questions, config.samples)
    gold = np.array([[tune.key[q.id][0]] for q in tune.questions])
    first, answers = (
        np.array([[_answer(t, q) for t in texts] for texts, q in zip(responses, tune.questions, strict=True)])
        for responses in (greedy, sampled)
    )
    right, habits = answers == gold, np.array([[digits.habit(t) for t in texts] for texts in sampled])
    return Figures(
        questions=len(gold),
        samples=config.samples,
        greedy=float((first == gold).mean()),
        pass_at_1=float(right.mean()),
        maj_at_n=float(np.mean([_majority(row) == g for row, (g,) in zip(answers.tolist(), gold, strict=True)])),
        reasoned_right=float(right[habits == "reasoned"].mean()),
        direct_right=float(right[habits == "direct"].mean()),
        direct_share=float((habits == "direct").mean()),
        direct_share_greedy=float(np.mean([digits.habit(t) == "direct" for (t,) in greedy])),
        unparsed=float(np.mean([[a is None for a in row] for row in answers.tolist()])),
    )


@torch.no_grad()
def answer_all(model: Any, processor: Any, questions: Sequence[Question], n: int) -> list[list[str]]:
    """`n` responses to each question; one is greedy, more are sampled at temperature 1 from the whole vocabulary."""
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": n}
    processor.tokenizer.padding_side = "left"
    answers: list[list[str]] = []
    for start in range(0, len(questions), 64):
        group = questions[start : start + 64]
        contents = [[{"type": "image"}, {"type": "text", "text": q.prompt}] for q in group]
        texts = [
            processor.apply_chat_template([{"role": "user", "content": c}], add_generation_prompt=True)
            for c in contents
        ]
        images = [image for q in group for image in q.images]
        features = processor(text=texts, images=images, return_tensors="pt", padding=True)
        output = model.generate(**features, **(sampling if n > 1 else {}))[:, features["input_ids"].shape[1] :]
        responses = processor.batch_decode(output, skip_special_tokens=True)
        answers += [responses[i : i + n] for i in range(0, len(responses), n)]
    return answers


def _answer(text: str, question: Question) -> str | None:
    answer = parse(text, question.spec)
    return answer and answer.key


def _majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer; ties go to the shortest, then the smallest."""
    counts = Counter(answer for answer in answers if answer is not None)
    return min(counts, key=lambda a: (-counts[a], len(a), a), default=None)


def write_card(folder: Path, config: Config, stages: Mapping[str, float], figures: Figures, seconds: float) -> None:
    """The model card, README.md: every figure in it is of the run that wrote it."""
    fonts = "\n".join(
        f"| {name} | {_dpkg('-W', '-f=${Version}', name)} | {FONT_PACKAGES[name]} |" for name in FONT_PACKAGES
    )
    recipe = (
        f"python scripts/study/train_source_checkpoint.py --seed {config.seed} --recipe {config.recipe} --output DIR"
    )
    filled = {"recipe": recipe, "minutes": seconds / 60, "fonts": fonts, "config": config, "stages": stages}
    (folder / "README.md").write_text(_CARD.format(**filled, f=figures))


_CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
---
# A tiny Qwen2.5-VL that reads printed digits

The starting model of the embedded benchmark `digits` (recipe `{config.recipe}`): a
`Qwen2_5_VLForConditionalGeneration` of 2.2 million parameters that answers questions about two or three digits side
by side. Licence: Apache-2.0.

Intended use: a start for test-time adaptation that fits a demonstration and tests on two CPU cores. It answers
nothing but the question kinds of `digits`, and is weak on purpose (below); use it for nothing else.

## How it was made
`{recipe}`
({minutes:.0f} minutes on two CPU cores), in three stages:

1. vision, {config.vision.steps} steps: the tower reads printed digits under an auxiliary linear head, which is dropped
   (printed digits read: {stages[vision]:.3f}); then the tower is frozen;
2. reasoning, {config.reasoning.steps} steps: read the digits, work, answer in `\\boxed{{}}`
   (response tokens right, teacher-forced: {stages[reasoning]:.3f});
3. habits, {config.habits.steps} steps, {config.habits.direct:.0%} of the targets direct: `The answer is \\boxed{{r}}.`

Answering directly is undertrained deliberately. Instruction-tuned vision-language models have several such habits,
and which one to take is what agreement among a model's own samples can teach.

Training data: digits in the Debian fonts below with random rotation, shear, width, elastic displacement and stroke
width, scanned as the handwriting was (32 x 32 bits, counted in blocks of 4 x 4). No handwritten pixel or label is
trained on.

## How it was chosen
Recipe and steps were chosen on the `tune` split of `digits` (handwriting, disjoint from `adapt` and `held_out`) with
seed 0, which was not chosen among others.
Figures of this run there, {f.questions} questions, {f.samples} samples at temperature 1:

| | |
|---|---|
| greedy | {f.greedy:.3f} |
| mean pass@1 | {f.pass_at_1:.3f} |
| maj@{f.samples} | {f.maj_at_n:.3f} |
| reasoned responses right | {f.reasoned_right:.3f} |
| direct responses right | {f.direct_right:.3f} |
| direct share of samples | {f.direct_share:.3f} |
| direct share of greedy responses | {f.direct_share_greedy:.3f} |
| without a boxed answer | {f.unparsed:.3f} |

## Fonts
At most {config.files_per_package} files of each package.

| Debian package | version | licence of its fonts |
|---|---|---|
{fonts}
"""


def build(output: Path, config: Config) -> Figures:
    """Train, save in the ordinary Hugging Face layout (bfloat16), load that back, measure it, write the card."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    began = time.monotonic()
    processor = build_processor(config)
    model = build_model(processor, config.seed)
    use_fast_attention(model)
    teacher = Teacher(processor, print_digits(config), config)
    stages = {"vision": train_vision(model, teacher, config.vision)}
    model.model.visual.requires_grad_(False)
    for name, stage in (("reasoning", config.reasoning), ("habits", config.habits)):
        stages[name] = train_language(name, model, teacher, stage)
        log.info("%s: %.3f of the response tokens right", name, stages[name])
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)
    saved = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32).eval()
    figures = measure(saved, AutoProcessor.from_pretrained(output), config)
    write_card(output, config, stages, figures, time.monotonic() - began)
    log.info("%s", figures)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint and its card")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=list(RECIPES), default="two-habits")
    parser.add_argument("--threads", type=int, default=2, help="another count gives slightly different weights")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    options.output.mkdir(parents=True, exist_ok=True)
    build(options.output, replace(RECIPES[options.recipe], seed=options.seed))


if __name__ == "__main__":
    main()
