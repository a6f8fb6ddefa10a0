"""The running batch of the transformers sampler: rows join it, get one token per step, and leave it.

Shape suffixes: B prompts, R rows being decoded, T tokens of a response, prefix included, M prefixes, P tokens of a
prefix, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Prompt
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.kv_cache import KeyValues, PrefixPass, Prompts, Sharing, StepPass, chunks

LEAVE = 0.2
"""Finished rows leave once they are more than this share of all: the keys and values of the others are then copied."""


@dataclass
class Rows:
    """The responses being decoded, one per row, on the host.

    `number_R` is the request's number and `slot_R` its prompt's slot. `going_R` says which rows go on, `stopped_R`
    which met an end token. A row began with `start_R` tokens, its prefix, and has `length_R` now. `draws_RT` are its
    uniforms in [0, 1); `ids_RT`, `logp_RT` and `entropy_RT` (nats) hold what was drawn.
    """

    number_R: np.ndarray
    slot_R: np.ndarray
    going_R: np.ndarray
    stopped_R: np.ndarray
    start_R: np.ndarray
    length_R: np.ndarray
    draws_RT: np.ndarray
    ids_RT: np.ndarray
    logp_RT: np.ndarray
    entropy_RT: np.ndarray

    def __len__(self) -> int:
        return len(self.number_R)

    @classmethod
    def new(cls, numbers: Sequence[int], slots: np.ndarray, starts: Sequence[int], draws_RT: np.ndarray) -> Rows:
        rows, length = draws_RT.shape
        start_R = np.array(starts, np.int64)
        logp_RT, entropy_RT = np.zeros((2, rows, length), np.float32)
        return cls(
            np.array(numbers, np.int64),
            slots,
            np.ones(rows, bool),
            np.zeros(rows, bool),
            start_R,
            start_R.copy(),
            draws_RT,
            np.zeros((rows, length), np.int64),
            logp_RT,
            entropy_RT,
        )

    def kept(self, rows: np.ndarray) -> Rows:
        """Return only `rows`."""
        return Rows(*(getattr(self, column.name)[rows] for column in fields(self)))

    def joined(self, other: Rows) -> Rows:
        """Return these rows, then those of `other`."""
        names = [column.name for column in fields(self)]
        return Rows(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))

    def completion(self, row: int) -> Completion:
        """Return what was drawn in `row`, without the prefix."""
        own = slice(self.start_R[row], self.length_R[row])
        tokens, logp, entropy = (x[row, own].copy() for x in (self.ids_RT, self.logp_RT, self.entropy_RT))
        return Completion(tuple(tokens.tolist()), logp, entropy, "stop" if self.stopped_R[row] else "length")


class Batch:
    """Rows being decoded, the keys and values they read, and the hidden states (R, D) that predict their next tokens.

    `length` is the most tokens of a response, its prefix included.
    """

    def __init__(self, policy: Policy, requests: Sequence[Request], length: int) -> None:
        self.policy, self.requests, self.length = policy, requests, length
        self.prompts, self.responses = Prompts(policy), KeyValues()
        self.rows = Rows.new((), np.zeros(0, np.int64), (), np.zeros((0, length)))
        self.hidden_RD = self.prompts.hidden_BD

    @property
    def bytes(self) -> int:
        """Bytes of the keys and values held."""
        return self.prompts.bytes + self.responses.bytes

    def admit(self, numbers: Sequence[int], draws_RT: np.ndarray) -> None:
        """Prefill new prompts and the prefixes of the requests `numbers`, then append the requests as rows."""
        requests = [self.requests[i] for i in numbers]
        prompts = [self.policy.prompt(request.question) for request in requests]
        self.prompts.add([prompt for prompt in dict.fromkeys(prompts) if prompt not in self.prompts.slots])
        slots = np.array([self.prompts.slots[prompt] for prompt in prompts])
        prefixes = [request.prefix for request in requests]
        responses, hidden_RD = self._prefill_prefixes(slots, prefixes)
        self.responses.join(responses)
        self.hidden_RD = torch.cat([self.hidden_RD.to(hidden_RD), hidden_RD])
        self.rows = self.rows.joined(Rows.new(numbers, slots, list(map(len, prefixes)), draws_RT))
        self.sharing = Sharing(self.rows.slot_R, self.prompts)

    def _prefill_prefixes(self, slots: np.ndarray, prefixes: Sequence[tuple[int, ...]]) -> tuple[KeyValues, Tensor]:
        """Return room for the responses, filled with the prefixes' keys and values, and the hidden states (R, D)
        that predict what follows each prefix."""
        _, _, heads, _, width = self.prompts.layers[0].shape
        room = (2, len(slots), heads, self.length, width)
        responses = KeyValues([layer.new_zeros(room) for layer in self.prompts.layers])
        hidden_RD = self.prompts.hidden_BD[torch.from_numpy(slots)]
        # A prefix is computed once per prompt, and only if it is not the beginning of a longer one.
        named = {row: (int(slots[row]), *prefix) for row, prefix in enumerate(prefixes) if prefix}
        covers = longest(named.values())
        for chunk in chunks(sorted(set(covers.values()), key=len, reverse=True), len):
            source_of = {name: m for m, name in enumerate(chunk)}
            pairs = [(row, source_of[covers[name]]) for row, name in named.items() if covers[name] in source_of]
            rows, source = torch.tensor(pairs, device=hidden_RD.device).T
            sharing = Sharing(np.array([name[0] for name in chunk]), self.prompts)
            hidden_MPD = PrefixPass(sharing, responses, rows, source).forward(self.policy, [n[1:] for n in chunk])
            ends = torch.tensor([len(prefixes[row]) - 1 for row, _ in pairs], device=hidden_RD.device)
            hidden_RD[rows] = hidden_MPD[source, ends]
        return responses, hidden_RD

    @property
    def uniform_R(self) -> np.ndarray:
        """The draw for each row's next token; that of a finished row is not used."""
        at = np.minimum(self.rows.length_R, self.length - 1)
        found: np.ndarray = self.rows.draws_RT[np.arange(len(at)), at]
        return found

    @property
    def barred(self) -> list[tuple[int, int]]:
        """The (row, token) pairs that may not be drawn now."""
        first = np.flatnonzero(self.rows.length_R == self.rows.start_R).tolist()
        return [(row, token) for row in first for token in self.requests[self.rows.number_R[row]].barred]

    def record(self, token_R: Tensor, logp_R: Tensor, entropy_R: Tensor, ends: np.ndarray) -> None:
        """Record what was drawn. Rows that drew one of `ends` or are full are then finished."""
        rows, going = self.rows, self.rows.going_R
        at = np.flatnonzero(going), rows.length_R[going]
        pairs = ((rows.ids_RT, token_R), (rows.logp_RT, logp_R), (rows.entropy_RT, entropy_R))
        for column, drawn in pairs:
            column[at] = drawn.cpu().numpy()[going]
        self.token_R = token_R
        rows.length_R = rows.length_R + going
        ended = np.zeros_like(going)
        ended[going] = np.isin(rows.ids_RT[at], ends)
        rows.stopped_R = rows.stopped_R | ended
        rows.going_R = going & ~ended & (rows.length_R < self.length)

    def retire(self, needed: Prompt | None) -> dict[int, Completion]:
        """Remove finished rows if they are many, and the prompts that no row reads, except `needed`.

        Return number -> completion of the rows that left.
        """
        going = self.rows.going_R
        if going.any() and (~going).mean() <= LEAVE:
            return {}
        left = np.flatnonzero(~going).tolist()
        done = {int(self.rows.number_R[row]): self.rows.completion(row) for row in left}
        self._keep(np.flatnonzero(going), needed)
        return done

    def _keep(self, kept: np.ndarray, needed: Prompt | None) -> None:
        self.rows = self.rows.kept(kept)
        self.token_R = self.token_R[torch.from_numpy(kept)]
        self.responses.keep(kept, self.length)
        wanted = np.isin(np.arange(len(self.prompts.length_B)), self.rows.slot_R)
        if needed in self.prompts.slots:
            wanted[self.prompts.slots[needed]] = True
        self.rows.slot_R = self.prompts.keep_only(wanted)[self.rows.slot_R]
        self.hidden_RD = self.hidden_RD[:0]
        if len(kept):
            self.sharing = Sharing(self.rows.slot_R, self.prompts)

    def step(self) -> None:
        """Run a forward over the last token of each row."""
        if not len(self.rows):
            return
        going, at_R = self.rows.going_R, self.rows.length_R - 1
        # The output of a finished row is not read. Placed with the longest, it needs a mask only if the others do.
        at_R = np.where(going, at_R, at_R[going].max())
        self.hidden_RD = StepPass(self.sharing, self.responses, at_R).forward(self.policy, self.token_R)


def longest(prefixes: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Map each prefix to one that begins with it and is not itself the beginning of another; to itself if it is one."""
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    last: tuple[int, ...] = ()
    # In descending lexicographic order, a prefix comes right after those that begin with it.
    for prefix in sorted(set(prefixes), reverse=True):
        last = last if last[: len(prefix)] == prefix else prefix
        found[prefix] = last
    return found
