"""Live programs that become others: the target's program exactly, and its answers bit for bit, however long the chain."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_programs import DTYPES, HALF, SIZED, a_graph, delta, hash_of, rows

from tessera.domain.errors import FailedPrecondition, InvalidInput, Unsupported
from tessera.policy.transform import registry
from tessera.runtime.backends.aten.program import Plan, execute, read_plan
from tessera.runtime.backends.aten.transform import read_delta, transform


def without_slots(found: Plan) -> Any:
    """What a plan is, whatever its slots are called."""
    names = {port.slot: f"input {port.name}" for port in found.inputs} | {each.slot: f"tensor {each.name}" for each in found.tensors}
    steps = []
    for place, (step, frees) in enumerate(zip(found.steps, found.frees, strict=True)):
        steps.append(
            (step.name, step.arguments, step.keywords, [names[slot] for slot in step.reads], [names[slot] for slot in step.weights])
        )
        names[step.result] = f"value {place}"
        steps.append(sorted(names[slot] for slot in frees))
    tensors = [(each.name, each.dtype, each.shape) for each in found.tensors]
    return [port.name for port in found.inputs], tensors, steps, [(port.name, names[port.slot]) for port in found.outputs]


def answers(found: Plan) -> list[torch.Tensor]:
    bound: list[Any] = [None] * found.slots
    for each in found.tensors:
        seed = torch.Generator().manual_seed(hash_of(each.name))
        bound[each.slot] = torch.rand(each.shape, generator=seed).to(DTYPES[each.dtype])
    given_ = {port.name: torch.rand(4, generator=torch.Generator().manual_seed(hash_of(port.name))) for port in found.inputs}
    return execute(found, bound, given_)


@given(st.lists(rows, min_size=2, max_size=5), st.sampled_from(sorted(registry.PLANNERS)), st.booleans())
def test_a_chain_of_transformations_ends_in_the_program_that_a_fresh_load_has(made: list[Any], planner: str, digests: bool) -> None:
    graphs = [a_graph(each, ("mask", "x") if at % 2 else ("x",)) for at, each in enumerate(made)]
    live = read_plan(graphs[0])
    for source, target in pairwise(graphs):
        live = transform(live, read_delta(delta(source, target, planner, digests)))
        fresh = read_plan(target)
        assert without_slots(live) == without_slots(fresh)
        for one, other in zip(answers(live), answers(fresh), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("planner", sorted(registry.PLANNERS))
def test_what_differs_in_dtype_alone_is_bound_anew_and_sizes_are_asked_for_again(planner: str) -> None:
    """From full precision to half of it and back, under a size that varies."""
    full, half = ([(kind, 4, 0, 0), (SIZED, 1, 0, 0)] for kind in ("aten.mul.Tensor", HALF))
    live = read_plan(a_graph(full))
    for source, target, dtype in ((full, half, "FP16"), (half, full, "FP32")):
        live = transform(live, read_delta(delta(a_graph(source), a_graph(target), planner)))
        assert [each.dtype for each in live.tensors] == [dtype]
        for length in (4, 1):
            given_ = {"x": torch.rand(length)}
            bound = [None] * live.slots
            bound[live.tensors[0].slot] = weights = torch.rand(4).to(DTYPES[dtype])
            answer = execute(live, bound, given_)[0]
            assert torch.equal(answer, given_["x"] * weights)


def test_the_old_plan_is_as_it_was_and_slots_do_not_grow() -> None:
    small, large = a_graph([("aten.mul.Tensor", 4, 0, 0)]), a_graph([("aten.addcmul.default", 4, at, 0) for at in range(4)] * 3)
    there, back = read_delta(delta(small, large)), read_delta(delta(large, small))
    live = read_plan(small)
    before = without_slots(live)
    slots = set()
    for _ in range(20):
        other = transform(live, there)
        slots.add(other.slots)
        assert without_slots(live) == before
        live = transform(other, back)
    assert len(slots) <= 2, "what one end of the chain took, the other end leaves"


def test_steps_that_stay_are_the_same_objects() -> None:
    chain = [("aten.mul.Tensor", 4, at, 0) for at in range(4)]
    live = read_plan(a_graph(chain))
    longer = transform(live, read_delta(delta(a_graph(chain), a_graph([*chain, ("aten.relu.default", 1, 0, 0)]))))
    assert all(one is other for one, other in zip(live.steps, longer.steps, strict=False))


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(delta(TWO, THREE)), **fields}).encode()


TWO = a_graph([("aten.mul.Tensor", 4, 0, 0), ("aten.relu.default", 4, 0, 0)])
THREE = a_graph([("aten.mul.Tensor", 4, 1, 0), ("aten.relu.default", 4, 0, 0), ("aten.mul.Tensor", 4, 2, 0)])


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"format": 2}, Unsupported, "format 2"),
        ({"more": 1}, InvalidInput, "more"),
        ({"kept": [[0, 0, 3]]}, FailedPrecondition, "keeps operations 0 to 2 of 2"),
        ({"kept": [[-1, 0, 1]]}, FailedPrecondition, "keeps operations -1"),
        ({"kept": [[0, 0, 2], [1, 1, 1]]}, FailedPrecondition, "one of them is taken"),
        ({"kept": [[0, 0, 1]]}, FailedPrecondition, "reads operation 1, which is not there before it"),
        ({"nodes": [[3, "aten.relu.default", [{"operation": 1}], {}]]}, FailedPrecondition, "operation 2 is neither kept nor made"),
        (
            {"nodes": [[0, "aten.relu.default", [{"input": 0}], {}]], "kept": [[0, 1, 2]]},
            FailedPrecondition,
            "operation 0 gets 1 tensors and has gone",
        ),
        ({"weights": []}, FailedPrecondition, "operation 0 stays and gets no tensors"),
        ({"weights": [[0, [0, 1]]]}, FailedPrecondition, "operation 0 gets 2 tensors and has 1"),
        ({"weights": [[1, [0]]]}, FailedPrecondition, "operation 1 gets 1 tensors and has 0"),
        ({"nodes": [[2, "aten.mul.Tensor", [{"operation": 2}, {"tensor": 1}], {}]]}, FailedPrecondition, "reads operation 2"),
        ({"nodes": [[2, "aten.mul.Tensor", [{"operation": 1}, {"tensor": 9}], {}]]}, FailedPrecondition, "reads tensor 9"),
        ({"nodes": [[2, "aten.mul.Tensor", [{"input": 4}, {"tensor": 1}], {}]]}, FailedPrecondition, "reads input 4"),
        ({"nodes": [[2, "aten.mul_.Tensor", [{"operation": 1}, {"tensor": 1}], {}]]}, Unsupported, "it writes to its arguments"),
        ({"nodes": [[2, "aten.mul.Tensor", [{"slot": 1}, {"tensor": 1}], {}]]}, Unsupported, "slot 1"),
        ({"outputs": [["y", {"operation": 3}]]}, FailedPrecondition, "output y reads operation 3"),
        ({"nodes": [[2, "aten.mul.Tensor", [{"operation": 1, "input": 0}, {"tensor": 1}], {}]]}, FailedPrecondition, "must be one key"),
        ({"outputs": [["y", {"slot": 3}]]}, FailedPrecondition, "must be one input, tensor or operation"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused_with_the_place(fields: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        transform(read_plan(TWO), read_delta(changed(**fields)))
    assert words in str(caught.value)


def test_a_delta_of_another_program_is_refused() -> None:
    """As many operations, the second of which reads the third in the new order."""
    crossing = changed(kept=[[1, 0, 1], [0, 1, 1]], weights=[[1, [0]]])
    with pytest.raises(FailedPrecondition, match=r"operation 0 \(aten.relu.default\) stays and reads what nothing makes before it"):
        transform(read_plan(TWO), read_delta(crossing))
