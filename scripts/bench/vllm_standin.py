"""A stand-in for `vllm.LLM`: it schedules requests as vLLM does, and draws responses of given lengths without a model.

Each step gives every running request one token, or the next piece of its prompt, within the tokens of one forward; then
requests that wait join, in the order they came in, up to `max_num_seqs` running ones. Blocks that another request has
computed are taken from the prefix cache. Keys and values always fit, so that nothing is preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple


class Response(NamedTuple):
    """What is drawn for a request, in place of `SamplingParams`: its tokens, and whether the last one ends it."""

    token_ids: tuple[int, ...]
    ends: bool


@dataclass(eq=False)
class _Request:
    """A request: its prompt and, as it goes on, its response; how many of these tokens have been computed.

    `blocks` names the first whole blocks, of which the first `kept` are in the cache.
    """

    number: int
    tokens: list[int]
    response: Response
    drawn: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    kept: int = 0


class StandIn:
    """What the product asks of `vllm.LLM` and its engine, and counts.

    `steps` counts forwards, `prompt_tokens` the tokens computed that were not drawn just before, and `heard` lists the
    calls of other methods, by name.
    """

    def __init__(self, max_num_seqs: int = 256, max_num_batched_tokens: int = 8192, block_size: int = 32) -> None:
        self.rows, self.tokens, self.block = max_num_seqs, max_num_batched_tokens, block_size
        self.llm_engine = self
        self.model_config = SimpleNamespace(max_model_len=2**20)
        self.steps = self.prompt_tokens = self.count = 0
        self.heard: list[str] = []
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self._cached: set[int] = set()

    def enqueue(self, prompts: Sequence[Any], params: Sequence[Response], use_tqdm: bool = True) -> list[str]:
        """Add requests, and return their names."""
        numbers = range(self.count, self.count + len(prompts))
        self.count += len(prompts)
        for number, prompt, response in zip(numbers, prompts, params, strict=True):
            self.waiting.append(_Request(number, list(prompt["prompt_token_ids"]), response))
        return [f"{number}-standin" for number in numbers]

    def has_unfinished_requests(self) -> bool:
        """Return whether any request waits or runs."""
        return bool(self.waiting or self.running)

    def abort_request(self, names: Sequence[str]) -> None:
        """Drop requests, by their numbers."""
        gone = set(map(int, names))
        self.waiting = deque(request for request in self.waiting if request.number not in gone)
        self.running = [request for request in self.running if request.number not in gone]

    def step(self) -> list[Any]:
        """Run one forward, and return the outputs of the requests that it finished."""
        self.steps += 1
        room = self.tokens
        for request in self.running:
            room -= self._compute(request, room)
        while self.waiting and room and len(self.running) < self.rows:
            request = self.waiting.popleft()
            request.computed = self._known(request)
            room -= self._compute(request, room)
            self.running.append(request)
        finished = [request for request in self.running if request.drawn == len(request.response.token_ids)]
        self.running = [request for request in self.running if request.drawn < len(request.response.token_ids)]
        return [_output(request) for request in finished]

    def reset_prefix_cache(self) -> None:
        """Forget what was computed."""
        self.heard.append("reset_prefix_cache")
        self._cached.clear()

    def sleep(self, level: int = 1) -> None:
        """Drop keys and values, as vLLM does at either level."""
        self.heard.append(f"sleep {level}")
        self._cached.clear()

    def wake_up(self, tags: Sequence[str] = ("weights", "kv_cache")) -> None:
        """Note that it woke."""
        self.heard.append(f"wake_up {' '.join(tags)}")

    def collective_rpc(self, method: Any, args: Sequence[Any] = ()) -> list[Any]:
        """Note what the workers were called with."""
        self.heard.append(method if isinstance(method, str) else method.__name__)
        return []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("reset_"):
            return lambda: self.heard.append(name)
        raise AttributeError(name)

    def _compute(self, request: _Request, room: int) -> int:
        """Compute up to `room` tokens of the request, draw one if all are computed; return how many."""
        new = len(request.tokens) - request.computed
        if new > room:
            new = room
        request.computed += new
        if new != 1 or not request.drawn:
            self.prompt_tokens += new if not request.drawn else new - 1
        whole = request.computed // self.block
        if whole > request.kept:
            self._name_blocks(request, whole)
            self._cached.update(request.blocks[request.kept : whole])
            request.kept = whole
        if request.computed == len(request.tokens):
            request.tokens.append(request.response.token_ids[request.drawn])
            request.drawn += 1
        return new

    def _known(self, request: _Request) -> int:
        """Return how many tokens of the request are in the cache, all but its last at most, in whole blocks."""
        self._name_blocks(request, (len(request.tokens) - 1) // self.block)
        known = 0
        while known < len(request.blocks) and request.blocks[known] in self._cached:
            known += 1
        return known * self.block

    def _name_blocks(self, request: _Request, count: int) -> None:
        """Name the first `count` blocks, each by its tokens and the block before it."""
        while len(request.blocks) < count:
            first = len(request.blocks) * self.block
            before = request.blocks[-1] if request.blocks else 0
            request.blocks.append(hash((before, *request.tokens[first : first + self.block])))


class _Same:
    """The log-probs of a token: those of all tokens are the same."""

    logprob = -1.0

    def __getitem__(self, token: int) -> _Same:
        return self


_SAME = _Same()


def _output(request: _Request) -> Any:
    ids, ends = request.response
    drawn = SimpleNamespace(token_ids=ids, logprobs=[_SAME] * len(ids), finish_reason="stop" if ends else "length")
    return SimpleNamespace(request_id=str(request.number), finished=True, outputs=[drawn])
