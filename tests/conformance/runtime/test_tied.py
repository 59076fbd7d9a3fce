"""Small language models whose last layer is their embedding, as the importer writes them, become each other: what is tied stays tied, and
so do the views and the sizes that vary."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tessera.domain.ids import Digest
from tessera.policy.transform import registry
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.structure import structure_of
from tessera.registry.importer.export import Exported, export
from tessera.registry.importer.loaded import Axis, InputSpec, Loaded
from tessera.runtime.backends.aten.program import Plan, execute, read_plan
from tessera.runtime.backends.aten.transform import read_delta, transform

WORDS, WIDTH, HEADS = 50, 16, 4
IDS = InputSpec("ids", torch.int64, (Axis.BATCH, Axis.SEQUENCE), high=WORDS)
ENDS = (Digest("1" * 64), Digest("2" * 64))


class Tied(torch.nn.Module):
    def __init__(self, blocks: int, seed: int, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.width = width
        self.words = torch.nn.Embedding(WORDS, width)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(blocks))
        self.norm = torch.nn.LayerNorm(width)
        self.last = torch.nn.Linear(width, WORDS, bias=False)
        self.last.weight = self.words.weight
        self.eval().requires_grad_(False)

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (ids,) = given
        x = self.words(ids)
        batch, length = ids.shape
        for block in self.blocks:
            heads = block(x).view(batch, length, HEADS, self.width // HEADS).transpose(1, 2)
            x = x + torch.relu(heads).transpose(1, 2).reshape(batch, length, self.width)
        return (self.last(self.norm(x)),)


def bound(plan: Plan, exported: Exported) -> list[torch.Tensor | None]:
    tensors = dict(exported.flat.tensors)
    found: list[torch.Tensor | None] = [None] * plan.slots
    for each in plan.tensors:
        found[each.slot] = tensors[each.name]
    return found


def readers_of_words(plan: Plan) -> tuple[int, set[str]]:
    """How many slots are of the embedding's size, and which operators read one."""
    slots = {each.slot for each in plan.tensors if each.shape[0] == WORDS}
    return len(slots), {step.name for step in plan.steps if slots & set(step.weights)}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch, of itself
@pytest.mark.parametrize("planner", sorted(registry.PLANNERS))
def test_what_is_tied_stays_tied_along_a_chain(planner: str, tmp_path: Path) -> None:
    modules = [Tied(1, 1), Tied(3, 2), Tied(2, 3, width=32), Tied(1, 1), Tied(1, 4)]
    made = [export(Loaded(module, (IDS,), ()), lambda exported: None) for module in modules]
    first = read_plan(made[0].flat.graph)
    tied = readers_of_words(first)
    assert (tied[0], len(tied[1])) == (1, 2), f"one tensor, read by the embedding and the last layer: {tied}"
    assert any("view" in step.name or "reshape" in step.name for step in first.steps)
    live = first
    for (source, target), module in zip(pairwise(made), modules[1:], strict=True):
        structures = [structure_of(exported.flat.graph) for exported in (source, target)]
        _, delta = planned(*structures, registry.make(planner), MetaCosts(), ENDS)
        live = transform(live, read_delta(delta))
        fresh = read_plan(target.flat.graph)
        assert readers_of_words(live) == tied
        for batch, length in ((1, 3), (2, 7), (3, 7)):
            ids = IDS.example(batch, length, torch.Generator().manual_seed(batch))
            (answer,), (expected,) = (execute(plan, bound(plan, target), {"ids": ids}) for plan in (live, fresh))
            assert torch.equal(answer, expected)
            torch.testing.assert_close(answer, module(ids)[0], atol=1e-5, rtol=1e-5)
