"""The policies that the tests of vLLM share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial

import pytest
import tiny
from tiny import tiny_policy
from vllm_policies import with_wide_heads

from mm_spine.policy.model import Policy


@pytest.fixture(scope="module", autouse=True)
def wide_heads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for kind, usual in tiny.TINY_CONFIGS.items():
            patch.setitem(tiny.TINY_CONFIGS, kind, partial(with_wide_heads, kind, usual=usual))
        yield
    gc.collect()  # the engines go with their policies


@pytest.fixture(scope="module")
def served() -> Policy:
    """The policy of this module's one lasting engine."""
    return tiny_policy(1)


@pytest.fixture
def policy(served: Policy) -> Iterator[Policy]:
    """`served`, and its weights put back afterwards."""
    start = served.weights()
    yield served
    served.restore(start)
