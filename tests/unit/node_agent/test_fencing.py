"""Fencing: no command of an older leader is obeyed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import StaleTerm
from tessera.domain.ids import Term
from tessera.node_agent.core.fencing import Fence


def test_newer_terms_are_taken_in_older_ones_refused() -> None:
    fence = Fence()
    assert fence.admit(Term(1, 5))
    assert not fence.admit(Term(1, 5))
    assert fence.admit(Term(1, 9))
    with pytest.raises(StaleTerm, match="term 5 is older than term 9"):
        fence.admit(Term(1, 5))
    assert fence.newest == Term(1, 9)


def test_another_clusters_term_counts_as_newer() -> None:
    fence = Fence(Term(1, 100))
    assert fence.admit(Term(2, 3))
    assert fence.newest == Term(2, 3)


def test_it_is_durable_when_the_file_holds_the_newest() -> None:
    fence = Fence(Term(1, 1))
    assert fence.durable
    fence.admit(Term(1, 2))
    assert not fence.durable
    fence.persisted(Term(1, 2))
    assert fence.durable


@given(st.lists(st.integers(1, 20), max_size=30))
def test_an_older_term_is_never_admitted(revisions: list[int]) -> None:
    fence = Fence()
    admitted: list[int] = []
    for revision in revisions:
        try:
            fence.admit(Term(1, revision))
        except StaleTerm:
            assert revision < admitted[-1]
        else:
            admitted.append(revision)
    assert admitted == sorted(admitted)
