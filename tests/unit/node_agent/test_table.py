"""The instance table: forward only, one instance per id and generation, a story of every move."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import AlreadyExists, NotFound
from tessera.domain.ids import InstanceId
from tessera.domain.instance import TERMINAL, InstanceState
from tessera.node_agent.core.table import STORY_LINES, InstanceTable

ORDER = list(InstanceState)


def test_a_move_keeps_what_it_does_not_name_and_writes_the_story(make: Any) -> None:
    table = InstanceTable()
    table.add(make.instance("a"), "told by term 7")
    table.move(InstanceId("a"), InstanceState.FETCHING, 1.0, "3 blobs missing", fetched=True)
    table.move(InstanceId("a"), InstanceState.MAPPED, 2.0, "held by rt-1")
    found = table.get(InstanceId("a"))
    assert (found.state, found.since_s, found.fetched) == (InstanceState.MAPPED, 2.0, True)
    assert [(line.at_s, line.words) for line in table.story(InstanceId("a"))] == [
        (0.0, "accepted: told by term 7"),
        (1.0, "fetching: 3 blobs missing"),
        (2.0, "mapped: held by rt-1"),
    ]


def test_the_story_is_bounded(make: Any) -> None:
    table = InstanceTable()
    table.add(make.instance("a"), "")
    for number in range(2 * STORY_LINES):
        table.tell(InstanceId("a"), float(number), "again")
    assert len(table.story(InstanceId("a"))) == STORY_LINES


def test_an_id_and_a_generation_belong_to_one_instance(make: Any) -> None:
    table = InstanceTable()
    table.add(make.instance("a", generation=5), "")
    with pytest.raises(AlreadyExists, match="'a' is on this node"):
        table.add(make.instance("a", generation=6), "")
    with pytest.raises(AlreadyExists, match="0000000000000005 belongs to instance 'a'"):
        table.add(make.instance("b", generation=5), "")
    table.move(InstanceId("a"), InstanceState.FAILED, 1.0, "")
    with pytest.raises(AlreadyExists):
        table.add(make.instance("b", generation=5), "")  # a tombstone keeps its generation
    table.forget(InstanceId("a"))
    table.add(make.instance("b", generation=5), "")


def test_what_is_not_over_is_not_forgotten(make: Any) -> None:
    table = InstanceTable()
    table.add(make.instance("a"), "")
    with pytest.raises(ValueError, match="not over"):
        table.forget(InstanceId("a"))
    with pytest.raises(NotFound):
        table.forget(InstanceId("b"))
    with pytest.raises(ValueError, match="does not begin"):
        table.add(make.instance("c", state=InstanceState.LOADING), "")
    with pytest.raises(ValueError, match="a state changes by move"):
        table.note(InstanceId("a"), state=InstanceState.READY)


def test_a_runtimes_instances_are_its_live_ones(make: Any) -> None:
    table = InstanceTable()
    for name, runtime in (("a", "rt-1"), ("b", "rt-1"), ("c", "rt-2")):
        table.add(make.instance(name, runtime_id=runtime), "")
    table.move(InstanceId("a"), InstanceState.FAILED, 1.0, "")
    assert [found.instance_id for found in table.in_runtime("rt-1")] == ["b"]  # type: ignore[arg-type]


MOVES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(ORDER), st.integers(0, 3)), max_size=60)


@given(MOVES)
def test_states_only_go_forward_and_generations_stay_unique(moves: list[tuple[str, InstanceState, int]]) -> None:
    """Whatever is asked of it, in whatever order."""
    from tessera.node_agent.core.table import Instance

    table = InstanceTable()
    seen: dict[str, list[InstanceState]] = {}
    for name, to, generation in moves:
        try:
            if table.find(InstanceId(name)) is None:
                template: dict[str, Any] = {"variant": None, "artifact": None, "since_s": 0.0, "expires_at_s": None, "start_path": None}
                table.add(Instance(InstanceId(name), generation=generation, state=to, **template), "")  # type: ignore[arg-type]
                seen[name] = [to]
            elif to is InstanceState.GONE and not table.get(InstanceId(name)).alive:
                table.forget(InstanceId(name))
                del seen[name]
            else:
                table.move(InstanceId(name), to, 0.0, "")
                seen[name].append(to)
        except (ValueError, AlreadyExists):
            pass
        generations = [found.generation for found in table]
        assert len(generations) == len(set(generations))
    for states in seen.values():
        ranks = [ORDER.index(state) for state in states if state is not InstanceState.FAILED]
        assert ranks == sorted(ranks)
        assert len(set(states)) == len(states)
        assert all(state not in TERMINAL or states[at + 1 :] in ([], [InstanceState.GONE]) for at, state in enumerate(states))
