"""Define the sections of a configuration that say how responses are sampled."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mm_spine.config.values import BelowOne, Count, Positive, Section, Share, UpToOne, Votes, expand_votes


class DecodingConfig(Section):
    """How tokens are drawn. With transformers, `batch_rows` limits the rollouts decoded together, `kv_cache_gb`
    (10^9 bytes) the keys and values kept for them."""

    temperature: Positive = Field(
        default=1.0, description="temperature of the policy; log-probs and entropies are taken at it too"
    )
    top_p: Share = Field(default=1.0, description="nucleus sampling; below 1 only in evaluation")
    max_new_tokens: Count = Field(default=64, description="longest response, in tokens")
    batch_rows: Count = Field(default=512, description="most responses decoded together; transformers only")
    kv_cache_gb: Positive = Field(
        default=4.0, description="memory for keys and values, in 10^9 bytes; transformers only"
    )


class VotesConfig(Section):
    """At most `max` rollouts vote on a question; `votes: 64` is short for `votes: {max: 64}`.

    `stop: decided` ends a vote once the remaining rollouts cannot change its winner, `stop: confident` once the
    posterior probability that the leader is the mode exceeds `level`. Both check first after `train_rollouts` rollouts,
    or after as many as a unanimous vote needs if those are more, then after every `round` further ones. A smaller
    `round` saves more tokens and prefills prompts more often.

    A response is cut off if it reached `max_new_tokens`. Unless it closed a box before, it has not committed to an
    answer. `cut_off` holds in evaluation too. `cut_off: mask` is the overlong filtering of DAPO (arXiv 2503.14476).

    With `keep: [low, high]` a step trains only on questions whose vote share, of all rollouts drawn, is within these
    bounds, and samples further questions until it has `questions_per_step` of them or has sampled `refill` times as
    many: DAPO's dynamic sampling, without labels. The further questions are the first of the other ones in an order
    drawn anew for each step, so that every question is still asked once an epoch as one of its step's own.
    """

    max: Votes = Field(default=16, description="most rollouts of a question")
    stop: Literal["never", "decided", "confident"] = Field(
        default="never", description="when to stop sampling a question"
    )
    level: BelowOne = Field(default=0.95, description="posterior probability at which `confident` stops")
    round: Count = Field(default=2, description="rollouts of each further round")
    ties: Literal["hash", "drop"] = Field(
        default="hash",
        description="of tied answers the first by a hash of question id and answer wins; "
        "`drop`: and the policy term leaves the question out",
    )
    cut_off: Literal["abstain", "count", "mask"] = Field(
        default="abstain",
        description="a response cut off before it closed a box does not vote and is rewarded as one without an answer; "
        "`mask`: the policy term leaves it out; `count`: it votes like any other",
    )
    keep: tuple[UpToOne, UpToOne] | None = Field(
        default=None, description="train only on questions whose vote share is within these bounds, both included"
    )
    refill: Count = Field(
        default=3, description="with `keep`, sample at most so many times `questions_per_step` questions in a step"
    )

    @model_validator(mode="after")
    def _bounds(self) -> VotesConfig:
        if self.keep is not None and self.keep[0] > self.keep[1]:
            raise ValueError(f"keep={list(self.keep)}: the first bound is above the second; swap them")
        return self

    def keeps(self, share: float) -> bool:
        """Return whether a step trains on a question with this vote share."""
        return self.keep is None or self.keep[0] <= share <= self.keep[1]


class TreeConfig(Section):
    """ETMR's tree rollouts (arXiv 2508.11356): each root forks at `forks` of its tokens, `branches` times at each.

    The leaves vote: 1 + branches x forks of each tree; votes left over are flat rollouts. Fork tokens are those with
    the largest surprisal -log pi (Algorithm 1) or entropy, as `rank_by` says. With `distinct`, the branches of a
    fork begin with tokens that were not drawn there before.
    """

    forks: Count = Field(default=2, description="fork tokens of each root")
    branches: Count = Field(default=2, description="responses from each fork token")
    rank_by: Literal["surprisal", "entropy"] = Field(default="surprisal", description="what fork tokens are ranked by")
    distinct: bool = Field(default=False, description="branches of a fork begin with different tokens")


class RegenerateConfig(Section):
    """Responses drawn anew from a token of high entropy (arXiv 2508.11016): each root is continued `continuations`
    times from one of its tokens, drawn at random among the `candidates` of highest entropy.

    Roots and continuations vote: 1 + continuations of each root; votes left over are flat rollouts. A root without
    a candidate has flat rollouts in place of continuations.
    """

    continuations: Count = Field(default=3, description="responses drawn anew from one token of each root")
    candidates: Count = Field(default=20, description="tokens of highest entropy that this token is drawn among")
    least_characters: Count = Field(
        default=2, description="shorter tokens are no candidates; spaces around a token do not count"
    )


class VLLMConfig(Section):
    """The vLLM engine. It takes all requests of a step as they come and decodes `max_rows` of them together. With
    `own_process` its model runs in a process beside the trainer's, as it always does on several GPUs or ranks."""

    tensor_parallel: Count = Field(
        default=1, description="GPUs that share one engine; with several ranks, so many of one host share an engine"
    )
    memory_share: Share = Field(default=0.45, description="share of a card's memory, weights included")
    kv_cache_gb: Count = Field(default=1, description="memory for keys and values on a CPU, in 2^30 bytes")
    max_rows: Count = Field(default=256, description="most responses decoded together")
    enforce_eager: bool = Field(default=False, description="do not use CUDA graphs")
    own_process: bool = Field(default=False, description="run the engine in a process beside the trainer's")


class SamplingConfig(DecodingConfig):
    """Rollouts for training: `votes` of them vote, the first `train_rollouts` are trained on."""

    backend: Literal["hf", "vllm"] = Field(default="hf", description="sample with transformers or with vLLM")
    votes: VotesConfig = Field(default=VotesConfig(), description="how many rollouts vote, and when a vote ends")
    train_rollouts: Count = Field(default=16, description="how many of the voting rollouts are trained on")
    tree: TreeConfig | None = Field(default=None, description="tree rollouts; `{}`: with the defaults, null: none")
    regenerate: RegenerateConfig | None = Field(
        default=None, description="draw responses anew from tokens of high entropy; `{}`: with the defaults, null: no"
    )
    wordings: tuple[str, ...] = Field(
        default=(),
        description="further wordings that each question is asked in, in turn, under one vote; {question} stands for "
        "its words",
    )
    vllm: VLLMConfig = Field(default=VLLMConfig(), description="the engine of `backend: vllm`")

    @field_validator("wordings")
    @classmethod
    def _of_the_question(cls, wordings: tuple[str, ...]) -> tuple[str, ...]:
        for wording in wordings:
            if wording.count("{question}") != 1 or wording.strip() == "{question}":
                raise ValueError(
                    f"{wording!r} must hold {{question}} once, for the words of the question, and words beside it"
                )
        if len(set(wordings)) < len(wordings):
            raise ValueError("two wordings are the same: leave one out")
        return wordings

    @property
    def plain(self) -> bool:
        """Whether every rollout is drawn by itself and from the question's own prompt."""
        return self.tree is None and self.regenerate is None and not self.wordings

    @model_validator(mode="before")
    @classmethod
    def _short(cls, section: Any) -> Any:
        return expand_votes(section)

    @property
    def ranks_together(self) -> int:
        """How many ranks share an engine; the first of them samples for all."""
        return self.vllm.tensor_parallel if self.backend == "vllm" else 1

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        if self.train_rollouts > self.votes.max:
            raise ValueError(f"train_rollouts={self.train_rollouts} is more than votes={self.votes.max}: lower it")
        if self.tree is not None and self.regenerate is not None:
            raise ValueError("tree and regenerate exclude each other: set one of them to null")
        if self.top_p < 1.0:
            raise ValueError(
                f"top_p={self.top_p}: training samples with top_p 1, a nucleus biases the importance ratio "
                "(evaluation.top_p may be lower)"
            )
        return self
