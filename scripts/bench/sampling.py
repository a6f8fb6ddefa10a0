r"""Rollouts side by side: transformers' generate as TRL calls it, ours on transformers, ours on vLLM; flat and trees,
full votes and votes that stop when they are decided.

    python scripts/bench/sampling.py [--image-tokens 1024 --rollouts 16 --response-tokens 64 --prompts 2 --repeats 3
        --vocab 2048 151936 --hidden 256 --layers 4 --dtype float32 --seed 0] [--questions 64 --votes 32 ...] [--json]

Tokens a second are measured on a random Qwen2.5-VL with `prompts` images, same weights and prompts for all; its end
token is one that nobody may draw, so that every response has exactly `response-tokens` tokens. The ways take turns,
after one turn that is not counted. TRL is 1.16's GRPOTrainer, unchanged: every prompt and its image repeated
`rollouts` times, chat and images processed for each (timed apart), left-padded, one call of generate. Ours starts from
questions: with images known (any step that meets them again) or new (decoded, hashed, through the tower once each).
vLLM takes the weights over in each turn, as after an update: nothing of the turn before is left in its caches.

Tokens a question, trees and stopped votes are measured on `digits` and its starting model, one turn each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import backend_parity
import sampling_digits
import timing
import torch
import trl_generate
import workload
from drawn import drawn_tokens, logprob_gap, markdown_table
from sampling_digits import RATES, rates_of
from timing import Took, middle, ratio, together
from transformers.utils.logging import disable_progress_bar
from workload import Sizes

from mm_spine.benchmarks import digits
from mm_spine.config import RunConfig
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.sampling import Sampler
from mm_spine.sampling.registry import SAMPLERS, make_sampler
from mm_spine.types import Question, Rollout

PROCESS, GENERATE, TRL = "TRL: chat and images", "TRL: generate", "TRL: both"
HF, NEW, HF_TREES = "transformers, images known", "transformers, images new", "transformers, trees"
VLLM, VLLM_TREES = "vLLM", "vLLM, trees"
BACKENDS = ("hf", "vllm")
CPU = torch.device("cpu")


class Way(NamedTuple):
    """How rollouts are made: `draw` is timed, `prepare` is not, `count` says how many tokens were drawn."""

    draw: Callable[[], Any]
    count: Callable[[Any], int]
    prepare: Callable[[], object] = lambda: None


class Bench(NamedTuple):
    """Everything set up; `samplers` by the way's name, for the log-prob gap."""

    sizes: Sizes
    policy: Policy
    questions: list[Question]
    ways: dict[str, Way]
    samplers: dict[str, Sampler]
    absent: dict[str, str]


def why_not(backend: str) -> str:
    """Say in a sentence why `backend` cannot run here; "" if it can."""
    return SAMPLERS[backend].why_not(True) if backend in SAMPLERS else f"there is no backend {backend} in this version"


def configuration(sizes: Sizes, backend: str, tree: bool = False) -> RunConfig:
    """One question's rollouts as votes, temperature 1; ETMR's two forks of two branches with `tree`."""
    sampling: dict[str, Any] = {"backend": backend, "votes": sizes.rollouts, "train_rollouts": 1}
    sampling |= {"max_new_tokens": sizes.response_tokens, "tree": {} if tree else None}
    return configure({"seed": sizes.seed, "model": {"dtype": sizes.dtype}, "sampling": sampling})


def set_up(sizes: Sizes, absent: Mapping[str, str], device: torch.device = CPU) -> Bench:
    """One model with copies of the same weights, and the ways to draw from it; backends of `absent` have none."""
    processor = workload.make_processor()
    model = workload.make_model(sizes, device)
    # All ways ban the image token: as the only end token it lets no response end early.
    processor.tokenizer.eos_token = "<|image_pad|>"
    model.generation_config.eos_token_id = model.config.image_token_id
    model.config.text_config.eos_token_id = model.config.image_token_id
    closed = "{% if message['role'] == 'user' %}<|im_end|>{% endif %}"
    processor.chat_template = processor.chat_template.replace("<|im_end|>", closed)
    questions = workload.make_questions(sizes)
    policy = workload.make_policy(deepcopy(model), processor, sizes)
    made = _samplers(sizes, policy, absent)
    ways = _trl_ways(deepcopy(model), processor, questions, sizes)
    ways |= {name: _our_way(sampler, policy, questions, sizes) for name, sampler in made.items()}
    newcomer = Newcomer(partial(workload.make_policy, processor=processor, sizes=sizes), model, questions, sizes)
    ways[NEW] = Way(newcomer.draw, drawn_tokens, newcomer.prepare)
    return Bench(sizes, policy, questions, ways, made, dict(absent))


def _samplers(sizes: Sizes, policy: Policy, absent: Mapping[str, str]) -> dict[str, Sampler]:
    plans = {HF: ("hf", False), HF_TREES: ("hf", True), VLLM: ("vllm", False), VLLM_TREES: ("vllm", True)}
    return {
        name: make_sampler(policy, configuration(sizes, backend, tree))
        for name, (backend, tree) in plans.items()
        if backend not in absent
    }


def _trl_ways(model: Any, processor: Any, questions: Sequence[Question], sizes: Sizes) -> dict[str, Way]:
    trainer = trl_generate.make_trainer(model, processor, questions, sizes)
    ready = trl_generate.process(trainer, questions)
    return {
        PROCESS: Way(partial(trl_generate.process, trainer, questions), lambda made: 0),
        GENERATE: Way(partial(trl_generate.generate, trainer, ready), lambda drawn: sum(map(len, drawn))),
    }


def _our_way(sampler: Sampler, policy: Policy, questions: Sequence[Question], sizes: Sizes) -> Way:
    draw = partial(sampler.sample, questions, sizes.rollouts, step=0, purpose="train")
    return Way(draw, drawn_tokens, lambda: sampler.sync(policy.trainable().items()))


@dataclass
class Newcomer:
    """Ours on transformers by a policy that has met no question yet; `make` gives one around a copy of `model`."""

    make: Callable[[Any], Policy]
    model: Any
    questions: Sequence[Question]
    sizes: Sizes
    policy: Policy | None = None

    def prepare(self) -> None:
        self.policy = self.make(deepcopy(self.model))

    def draw(self) -> list[list[Rollout]]:
        assert self.policy is not None, "prepare first"
        sampler = make_sampler(self.policy, configuration(self.sizes, "hf"))
        return sampler.sample(self.questions, self.sizes.rollouts, step=0, purpose="train")


Turns = tuple[dict[str, list[Took]], dict[str, int]]


def take_turns(ways: Mapping[str, Way], repeats: int, device: torch.device = CPU) -> Turns:
    """(`repeats` timings of each way, tokens each drew at its last turn); the ways take turns, the first uncounted."""
    taken: dict[str, list[Took]] = {name: [] for name in ways}
    tokens: dict[str, int] = {}
    for _ in range(1 + repeats):
        for name, way in ways.items():
            way.prepare()
            drawn: list[Any] = []
            taken[name].append(timing.timed(partial(_keep, way, drawn), device))
            tokens[name] = way.count(drawn[0])
    return {name: times[1:] for name, times in taken.items()}, tokens


def _keep(way: Way, drawn: list[Any]) -> None:
    drawn.append(way.draw())


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """Measure the tokens per second of every way, and how much faster ours are."""
    taken, tokens = take_turns(bench.ways, repeats)
    taken[TRL], tokens[TRL] = together(taken[PROCESS], taken[GENERATE]), tokens[GENERATE]
    _check_equal_tokens(tokens, bench.sizes)
    gaps = {name: _gap(bench, sampler) for name, sampler in bench.samplers.items()}
    return {
        "speedup_vs_trl_generate": ratio(taken[GENERATE], taken[NEW]),
        "speedup_vs_trl_generate_images_known": ratio(taken[GENERATE], taken[HF]),
        "speedup_vs_trl_whole": ratio(taken[TRL], taken[NEW]),
        "speedup_vs_trl_generate_cpu": ratio(taken[GENERATE], taken[NEW], "cpu"),
        "speedup_vs_trl_generate_images_known_cpu": ratio(taken[GENERATE], taken[HF], "cpu"),
        "speedup_vs_trl_whole_cpu": ratio(taken[TRL], taken[NEW], "cpu"),
        "vllm_tokens_per_second_ratio": ratio(taken[HF], taken[VLLM]) if VLLM in taken else None,
        "vllm_speedup_vs_trl_generate": ratio(taken[GENERATE], taken[VLLM]) if VLLM in taken else None,
        "logprob_gaps": gaps,
        "parity": parity(bench),
        "load": os.getloadavg()[0],
        "ways": {
            name: {
                **middle(times)._asdict(),
                "tokens": tokens[name],
                "tokens_per_second": tokens[name] / middle(times).wall,
                "tokens_per_question": tokens[name] / bench.sizes.questions,
            }
            for name, times in taken.items()
        },
    }


PARITY_QUESTIONS, PARITY_TOKENS, UPDATES = 20, 64, 20


def parity(bench: Bench) -> dict[str, Any] | None:
    """vLLM against ours on transformers: greedy responses that differ, the log-prob gap before and after updates.

    Changes the weights, hence the last to be measured. None without vLLM.
    """
    if VLLM not in bench.samplers:
        return None
    sizes = replace(bench.sizes, image_tokens=PARITY_TOKENS, questions=PARITY_QUESTIONS)
    policy, vllm, questions = bench.policy, bench.samplers[VLLM], workload.make_questions(sizes)
    before = logprob_gap(policy, questions, vllm.sample(questions, 2, step=0, purpose="parity"))
    differing, unlevel = backend_parity.greedy_differences(policy, questions, bench.samplers[HF], vllm, 2 * before)
    after = backend_parity.gap_after_updates(policy, questions[:4], vllm, UPDATES)
    return {"greedy_questions": len(questions), "greedy_differing": differing, "greedy_differing_not_level": unlevel,
            "logprob_gap": before, "logprob_gap_after_updates": after, "updates": UPDATES}  # fmt: skip


def _check_equal_tokens(tokens: Mapping[str, int], sizes: Sizes) -> None:
    whole = sizes.questions * sizes.rollouts * sizes.response_tokens
    for name in (GENERATE, NEW, HF, VLLM):
        if tokens.get(name, whole) != whole:
            raise RuntimeError(f"{name}: {tokens[name]} tokens drawn, {whole} by the others; no rates to compare")


def _gap(bench: Bench, sampler: Sampler) -> float:
    drawn = sampler.sample(bench.questions, bench.sizes.rollouts, step=0, purpose="train")
    return logprob_gap(bench.policy, bench.questions, drawn)


def measure_digits(sizes: sampling_digits.Sizes, backends: Sequence[str]) -> dict[str, Any]:
    """Return by backend the figures of `sampling_digits`, with the log-prob gap, and those of bf16's batches."""
    questions = digits.load("adapt").questions[: sizes.questions]
    policy = Policy.load(digits.MODEL_DIR)
    found: dict[str, Any] = {}
    for backend in backends:
        voted = sampling_digits.vote(policy, questions, sizes, backend)
        found[backend] = {**sampling_digits.figures(voted), "logprob_gap": sampling_digits.gap(policy, voted)}
    return {"backends": found, "differing": sampling_digits.batch_shares(sizes, questions[:16])}


TOP_LEVEL = ("tree_token_ratio", "tree_mean_fork_position", "adaptive_token_ratio", "adaptive_same_labels")


def summary(by_vocab: Mapping[int, Mapping[str, Any]], on_digits: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `--json` prints: the figures of ours on transformers at the top, all others below.

    Those of the first vocabulary stand at the top.
    """
    hf, prompts = on_digits["backends"]["hf"], next(iter(by_vocab.values()))
    gaps = [each["logprob_gap"] for each in on_digits["backends"].values()]
    for found in by_vocab.values():
        after = [found["parity"]["logprob_gap_after_updates"]] if found["parity"] else []
        gaps += [*found["logprob_gaps"].values(), *after]
    return {
        "speedup_vs_trl_generate": prompts["speedup_vs_trl_generate"],
        "vllm_tokens_per_second_ratio": prompts["vllm_tokens_per_second_ratio"],
        **{name: hf[name] for name in TOP_LEVEL},
        "max_logprob_gap": max(gaps),
        "bf16_differing_share": on_digits["differing"]["bfloat16"],
        "fp32_differing_share": on_digits["differing"]["float32"],
        "prompts": dict(prompts),
        "prompts_by_vocabulary": {str(vocab): dict(found) for vocab, found in by_vocab.items()},
        "digits": dict(on_digits["backends"]),
    }


def show(bench: Bench, prompts: Mapping[str, Any]) -> str:
    """Write the table of the prompts and the figures that have floors, as Markdown."""
    base = prompts["ways"][GENERATE]
    rates = (
        [
            name,
            *rates_of(way),
            f"{base['wall'] / way['wall']:.2f}",
            f"{way['cpu']:.2f}",
            f"{base['cpu'] / way['cpu']:.2f}",
        ]
        for name, way in prompts["ways"].items()
    )
    parts = [
        *(f"{backend}: not measured, {why}" for backend, why in bench.absent.items()),
        _prompts_in_words(bench),
        markdown_table((*RATES, "TRL's generate / this", "processor seconds", "TRL's generate / this"), rates),
        _rest_in_words(prompts),
        *([_parity_in_words(prompts["parity"])] if prompts["parity"] else []),
    ]
    return "\n\n".join(parts)


def _prompts_in_words(bench: Bench) -> str:
    sizes, policy = bench.sizes, bench.policy
    length = len(policy.prompt(bench.questions[0]).ids_L)
    return (
        f"{sizes.questions} prompts of {length} tokens, {sizes.image_tokens} of them an image's, {sizes.rollouts} "
        f"rollouts of {sizes.response_tokens} tokens; hidden {sizes.hidden} x {sizes.layers} layers, vocabulary "
        f"{sizes.vocab}, {sizes.dtype}, {policy.device.type}, {torch.get_num_threads()} thread(s), load average "
        f"{os.getloadavg()[0]:.1f}; tree tokens are those drawn."
    )


def _rest_in_words(prompts: Mapping[str, Any]) -> str:
    say = {name: f"{value:.2f}" for name, value in prompts.items() if isinstance(value, float)}
    gaps = ", ".join(f"{name} {gap:.1e}" for name, gap in prompts["logprob_gaps"].items())
    return (
        f"Ours on transformers, images new, draws {say['speedup_vs_trl_generate']} times the tokens/s of TRL's "
        f"generate ({say['speedup_vs_trl_generate_cpu']} by processor time), "
        f"{say['speedup_vs_trl_generate_images_known']} times with images known "
        f"({say['speedup_vs_trl_generate_images_known_cpu']}), and {say['speedup_vs_trl_whole']} times those of TRL "
        f"with its image processing ({say['speedup_vs_trl_whole_cpu']}). vLLM over ours on transformers, images known: "
        f"{say.get('vllm_tokens_per_second_ratio', 'not measured')}. Log-prob gaps on the prompts, nats: {gaps}."
    )


def _parity_in_words(found: Mapping[str, Any]) -> str:
    return (
        f"vLLM beside ours on transformers, greedy, {found['greedy_questions']} questions with images of "
        f"{PARITY_TOKENS} tokens: {found['greedy_differing']} responses differ, "
        f"{found['greedy_differing_not_level']} of them where the two tokens' log-probs are further apart than twice "
        f"the gap. Log-prob gap {found['logprob_gap']:.1e} nats, {found['logprob_gap_after_updates']:.1e} over "
        f"{found['updates']} rounds of update and sync."
    )


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[Sizes], sampling_digits.Sizes]:
    """Parse the command line into options, the prompts' sizes for each vocabulary, and those of `digits`."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mine = [field for field in fields(Sizes) if field.name not in ("questions", "selected", "vocab")]
    others = [field for field in fields(sampling_digits.Sizes) if field.name != "seed"]
    for field in (*mine, *others):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 151936], help="one after the other")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], choices=BACKENDS[1:], help="backends to leave out")
    parser.add_argument("--json", action="store_true", help="print the figures as one last line of JSON")
    options = parser.parse_args(arguments)
    prompts = Sizes(**{field.name: getattr(options, field.name) for field in mine}, questions=options.prompts)
    on_digits = {field.name: getattr(options, field.name) for field in others}
    cases = [replace(prompts, vocab=vocab) for vocab in options.vocab]
    return options, cases, sampling_digits.Sizes(**on_digits, seed=options.seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options, cases, digits_sizes = parse(arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    disable_progress_bar()
    absent = {backend: why for backend in BACKENDS if (why := why_not(backend))}
    absent |= dict.fromkeys(options.without, "told not to")
    by_vocab = {}
    for sizes in cases:
        bench = set_up(sizes, absent)
        by_vocab[sizes.vocab] = measure(bench, options.repeats)
        print(show(bench, by_vocab[sizes.vocab]), end="\n\n", flush=True)
        # Models, trainers and samplers refer to each other; they go before the next are made.
        del bench
        gc.collect()
    on_digits = measure_digits(digits_sizes, [backend for backend in BACKENDS if backend not in absent])
    print(sampling_digits.show(on_digits, digits_sizes))
    if options.json:
        print(json.dumps(summary(by_vocab, on_digits)))


if __name__ == "__main__":
    main()
