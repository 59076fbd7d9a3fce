"""What the models of one task have in common: requests to `task:NAME` may reach any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import ModelName
from tessera.domain.signature import Signature, TensorSpec

TASK_PREFIX = "task:"


def check_task_signature(task: str, signature: Signature, others: Mapping[ModelName, Signature]) -> None:
    """Checks a model's signature against those of the task's other models, by their names.

    Raises:
        InvalidInput: inputs or outputs differ in names, datatypes or ranks, or only some are batched: names the first model that differs
            and in what.
    """
    for name in sorted(others):
        differs = difference(signature, others[name])
        if differs:
            raise InvalidInput(
                "task",
                task,
                f"{differs} in model {name!r}; models of one task take and give tensors of the same names, datatypes and ranks",
            )


def common_signature(signatures: Iterable[Signature]) -> Signature:
    """The signature that requests to the task can rely on: a dimension that differs between its models is -1.

    Raises: ValueError when there is none.
    """
    first, *others = signatures
    for other in others:
        first = Signature(_joined(first.inputs, other.inputs), _joined(first.outputs, other.outputs), first.batched and other.batched)
    return first


def _joined(own: tuple[TensorSpec, ...], others: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in others}
    joined = []
    for spec in own:
        other = by_name.get(spec.name, spec)
        same_rank = len(spec.shape) == len(other.shape)
        shape = tuple(a if a == b else -1 for a, b in zip(spec.shape, other.shape, strict=True)) if same_rank else spec.shape
        joined.append(TensorSpec(spec.name, spec.datatype, shape, spec.any_rank or other.any_rank))
    return tuple(joined)


def difference(own: Signature, other: Signature) -> str:
    """In what they differ for who asks either, own first; "" where they fit."""
    if own.batched != other.batched:
        return f"it is {'' if own.batched else 'not '}batched, unlike what is registered"
    for kind, mine, theirs in (("input", own.inputs, other.inputs), ("output", own.outputs, other.outputs)):
        known = {spec.name: spec for spec in theirs}
        names = {spec.name for spec in mine}
        if names != known.keys():
            return f"its {kind}s are {_listed(names)}, and they are {_listed(known)}"
        for spec in mine:
            if _kind(spec) != _kind(known[spec.name]):
                return f"its {kind} {spec.name!r} is {_kind(spec)}, and it is {_kind(known[spec.name])}"
    return ""


def _kind(spec: TensorSpec) -> str:
    return f"{spec.datatype} of {'any rank' if spec.any_rank else f'rank {len(spec.shape)}'}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"
