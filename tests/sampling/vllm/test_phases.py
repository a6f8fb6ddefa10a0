"""Phases in vLLM: one for all rounds and branches of a step, scheduled as the count of forwards supposes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_policy
from vllm_policies import mixed, needs_vllm, sample, sampler_of

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "bench"))
from vllm_standin import Response, StandIn

from mm_spine.config import TreeConfig, VotesConfig
from mm_spine.draws import generator
from mm_spine.policy.model import Policy
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.phase import Waves, drive
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.sampling.tree import TreeSampler
from mm_spine.sampling.vllm import engine as vllm_engine
from mm_spine.sampling.vllm import sampler as vllm_sampler
from mm_spine.sampling.vllm.sampler import VLLMSampler

# Every engine takes seconds to start.
pytestmark = pytest.mark.slow


def counted(engine: vllm_engine.VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of vLLM's methods, as the engine calls them: whole forwards, and caches that are dropped."""
    heard: list[str] = []
    llm = engine._llm

    def spy(owner: Any, name: str) -> None:
        usual = getattr(owner, name)

        def spied(*arguments: Any, **named: Any) -> Any:
            heard.append(name)
            return usual(*arguments, **named)

        monkeypatch.setattr(owner, name, spied)

    for owner, name in ((llm.llm_engine, "step"), (llm, "enqueue"), (llm, "reset_prefix_cache")):
        spy(owner, name)
    return heard


def in_waves(sampler: VLLMSampler, scripts: Any, **how: Any) -> list[Any]:
    """Each wave in a phase of its own, as a backend without a phase draws it."""

    def complete(requests: Sequence[Request]) -> list[Completion]:
        with sampler.phase(**how) as phase:
            phase.submit(requests)
            found: dict[Request, Completion] = {}
            while len(found) < len(requests):
                found |= phase.drain()
        return [found[request] for request in requests]

    return drive(scripts, Waves(complete))


@needs_vllm
def test_forwards_are_those_of_the_stand_in(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own scheduler takes as many steps as the one that the count of forwards stands on, with 4 rows."""
    usual = vllm_engine.VLLMEngine._settings
    monkeypatch.setattr(
        vllm_engine.VLLMEngine, "_settings", lambda engine, policy: {**usual(engine, policy), "max_num_seqs": 4}
    )
    own = tiny_policy(1)
    own.model.generation_config.eos_token_id = []
    sampler, (question,) = sampler_of(own), mixed(1)
    lengths = generator("lengths").integers(1, 12, 25).tolist()
    # A prefix as long as what is missing to 12 tokens leaves so many to draw.
    requests = [Request(question, i, (5,) * (12 - length)) for i, length in enumerate(lengths)]
    sampler.complete(requests[:1], step=0, purpose="warm")
    heard = counted(vllm_sampler._engines[own], monkeypatch)
    drawn = sampler.complete(requests, step=0, purpose="test")
    assert [len(completion.token_ids) for completion in drawn] == lengths
    standin = StandIn(4)
    prompt = own.prompt(question).ids_L.tolist()
    responses = [Response((7,) * length, False) for length in lengths]
    standin.enqueue([{"prompt_token_ids": [*prompt, *r.prefix]} for r in requests], responses)
    while standin.has_unfinished_requests():
        standin.step()
    assert abs(heard.count("step") - standin.steps) <= 1, (heard.count("step"), standin.steps)


@needs_vllm
def test_rounds_and_branches_are_one_phase_and_draw_what_calls_in_turn_draw(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Votes until decided, over trees: the same rollouts as wave by wave, from fewer forwards, in one cache."""
    questions, votes = mixed(), VotesConfig(max=20, stop="decided", round=2, cut_off="count")
    drawn, steps = [], []
    for phased in (False, True):
        sampler = sampler_of(policy, max_new_tokens=16)
        if not phased:
            # As a backend without a phase of its own.
            monkeypatch.setattr(VLLMSampler, "run", in_waves)
        sample(sampler, questions, 1)
        heard = counted(vllm_sampler._engines[policy], monkeypatch)
        groups = vote_in_rounds(TreeSampler(sampler, TreeConfig()), questions, votes, 2, step=0, purpose="test")
        drawn.append([[(r.index, r.token_ids, r.parent, r.fork_at) for r in group.rollouts] for group in groups])
        steps.append(heard.count("step"))
        assert "reset_prefix_cache" not in heard
        monkeypatch.undo()
    assert drawn[0] == drawn[1]
    assert steps[1] <= steps[0]
