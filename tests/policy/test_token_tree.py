"""Token trees: every leaf is spelled by its places, every node covers its descendants, nothing shared lies twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_spine.policy.token_tree import Node, Tree, cut, token_tree

LEAVES = st.lists(st.lists(st.integers(0, 2), max_size=7), max_size=8)


def tree_of(*leaves: list[int], least: int = 1) -> Tree:
    return token_tree([np.array(leaf, dtype=np.int64) for leaf in leaves], least)


@given(LEAVES, st.integers(1, 6))
def test_every_leaf_is_spelled_by_its_places(leaves: list[list[int]], least: int) -> None:
    tree = tree_of(*leaves, least=least)
    for leaf, places in zip(leaves, tree.places, strict=True):
        assert tree.ids_P[places].tolist() == leaf
        assert tree.depth_P[places].tolist() == list(range(len(leaf)))
        assert (np.diff(places) > 0).all()


@given(LEAVES, st.integers(1, 6))
def test_a_token_is_read_from_itself_to_the_end_of_its_nodes_descendants(leaves: list[list[int]], least: int) -> None:
    """The places of a leaf see one another and nobody else's: what the attention makes of the nodes."""
    tree = tree_of(*leaves, least=least)
    assert [node.start for node in tree.nodes] == [0, *(node.stop for node in tree.nodes)][:-1]
    assert sum(node.stop - node.start for node in tree.nodes) == len(tree.ids_P)
    end = {at: node.end for node in tree.nodes for at in range(node.start, node.stop)}
    for places in tree.places:
        for i, query in enumerate(places.tolist()):
            assert [key for key in range(query + 1) if query < end[key]] == places[: i + 1].tolist()


@given(LEAVES)
def test_without_a_threshold_no_prefix_lies_twice(leaves: list[list[int]]) -> None:
    prefixes = {tuple(leaf[:length]) for leaf in leaves for length in range(1, len(leaf) + 1)}
    assert len(tree_of(*leaves).ids_P) == len(prefixes)


@given(LEAVES, st.integers(2, 9))
def test_a_threshold_wastes_less_than_itself_at_every_fork(leaves: list[list[int]], least: int) -> None:
    extra = len(tree_of(*leaves, least=least).ids_P) - len(tree_of(*leaves).ids_P)
    assert 0 <= extra <= max(len(leaves) - 1, 0) * (least - 1)


def test_a_tree_with_forks_two_levels_deep() -> None:
    tree = tree_of([1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6], [7])
    assert tree.ids_P.tolist() == [1, 2, 3, 4, 6, 5, 7]
    assert tree.depth_P.tolist() == [0, 1, 2, 3, 3, 2, 0]
    assert tree.nodes == (
        Node(0, 2, 6),
        Node(2, 3, 5),
        Node(3, 4, 4),
        Node(4, 5, 5),
        Node(5, 6, 6),
        Node(6, 7, 7),
    )


def test_a_leaf_that_another_continues_needs_no_node_of_its_own() -> None:
    tree = tree_of([1, 2], [1, 2, 3], [1, 2])
    assert tree.nodes == (Node(0, 2, 3), Node(2, 3, 3))
    assert [places.tolist() for places in tree.places] == [[0, 1], [0, 1, 2], [0, 1]]


def test_sharing_must_save_enough() -> None:
    """Three leaves that share two tokens save four."""
    leaves = ([1, 2, 3], [1, 2, 4], [1, 2, 5])
    assert len(tree_of(*leaves, least=4).ids_P) == 5
    assert tree_of(*leaves, least=5).ids_P.tolist() == [1, 2, 3, 1, 2, 4, 1, 2, 5]


def test_a_saving_counts_from_the_last_node_above() -> None:
    """One token shared by three is left alone; with it, the two that go on save four."""
    tree = tree_of([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 9], least=4)
    assert tree.ids_P.tolist() == [1, 2, 3, 4, 5, 6, 1, 9]


def test_a_chain_of_leaves_that_continue_one_another() -> None:
    tree = tree_of(*(list(range(length)) for length in range(40)))
    assert len(tree.ids_P) == len(tree.nodes) == 39
    assert {node.end for node in tree.nodes} == {39}


@pytest.mark.parametrize(
    ("selected", "left"), [([1, 1, 1], 2), ([0, 1, 0], 1), ([1, 0, 0], 0), ([0, 0, 0], 0), ([0, 0, 1], 2)]
)
def test_a_leaf_ends_before_its_last_selected_token(selected: list[int], left: int) -> None:
    assert cut(np.array([7, 8, 9]), np.array(selected, dtype=bool)).tolist() == [7, 8, 9][:left]


def test_no_leaf_makes_an_empty_tree() -> None:
    tree = token_tree([])
    assert len(tree.ids_P) == 0 and tree.nodes == () and tree.places == ()
    assert tree_of([], []).places[1].tolist() == []
