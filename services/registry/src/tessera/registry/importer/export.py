"""From a loaded model to a flat program that agrees with it: as dynamic as the model allows."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from tessera.domain.errors import Unsupported
from tessera.domain.signature import ROWS_MIX, Signature, TensorSpec
from tessera.registry.importer.dtypes import datatype_of
from tessera.registry.importer.flatten import Flat, flatten
from tessera.registry.importer.loaded import EXAMPLE_BATCH, EXAMPLE_SEQUENCE, Axis, Loaded, output_names

_MAX_BATCH_DIM = 4096
_FIXED_SEQUENCE = 128


@dataclass(frozen=True, slots=True)
class Exported:
    """`program` with inputs as in `loaded`; `flat` is the same program flattened. `loaded.inputs` have an `Axis` where it varies."""

    program: ExportedProgram
    flat: Flat
    signature: Signature
    loaded: Loaded


def export(loaded: Loaded, agree: Callable[[Exported], None]) -> Exported:
    """Exports with dynamic batch and sequence, else with dynamic batch, else with fixed shapes; `agree` raises where the result differs
    from the model, which counts as a failure of that attempt too. Where rows of a batch change one another the signature says
    that it is not batched, so that no runtime joins requests.

    Raises:
        Unsupported: no attempt worked, or the program needs what the flat program lacks (that ends the attempts at once).
    """
    if loaded.program is not None:
        made = _describe(loaded.program, loaded)
        agree(made)
        return _unbatched(made) if _rows_mix(made) else made
    reasons: list[str] = []
    for axes in ({Axis.BATCH, Axis.SEQUENCE}, {Axis.BATCH}, set[Axis]()):
        if Axis.SEQUENCE in axes and not loaded.has_sequence:
            continue
        shaped = _fix(loaded, axes)
        try:
            program = _trace(shaped, axes)
        except Exception as error:  # torch.export raises a dozen classes; each means "not that dynamic"
            reasons.append(_first_line(error))
            continue
        made = _describe(program, shaped)
        try:
            agree(made)
        except Unsupported as error:
            reasons.append(_first_line(error))
            continue
        if reasons:
            made.loaded.notes.append(f"exported with {'fixed shapes' if not axes else 'a dynamic batch only'}: {reasons[-1]}")
        return _unbatched(made) if _rows_mix(made) else made
    raise Unsupported(f"torch.export cannot trace the model: {reasons[-1]}")


def _rows_mix(made: Exported) -> bool:
    """Whether a row's answer depends on the rows beside it."""
    if not made.signature.batched:
        return False
    inputs = made.loaded.examples(3, EXAMPLE_SEQUENCE, seed=3)
    with torch.no_grad():
        together, alone = made.loaded.module(*inputs), made.loaded.module(*(value[:1] for value in inputs))
    return any(not _close(a[:1], b) for a, b in zip(together, alone, strict=True))


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Far looser than agreement: kernels for other batch sizes round differently, and deep random networks amplify that."""
    if a.shape != b.shape or not a.dtype.is_floating_point:
        return bool(torch.equal(a, b))
    scale = max(1.0, float(b.abs().nan_to_num(posinf=0.0).max())) if b.numel() else 1.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=1e-2 * scale, equal_nan=True))


def _unbatched(made: Exported) -> Exported:
    made.loaded.notes.append(ROWS_MIX)
    return replace(made, signature=replace(made.signature, batched=False))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


def _fix(loaded: Loaded, axes: set[Axis]) -> Loaded:
    """The same model with the dimensions that are not in `axes` given a length."""
    lengths = {Axis.BATCH: 1, Axis.SEQUENCE: min(_FIXED_SEQUENCE, loaded.max_sequence)}

    def fixed(dim: int | Axis) -> int | Axis:
        return lengths[dim] if isinstance(dim, Axis) and dim not in axes else dim

    inputs = tuple(replace(spec, shape=tuple(fixed(dim) for dim in spec.shape)) for spec in loaded.inputs)
    return replace(loaded, inputs=inputs, notes=list(loaded.notes))


def _trace(loaded: Loaded, axes: set[Axis]) -> ExportedProgram:
    dims = {Axis.BATCH: Dim("batch", min=1, max=_MAX_BATCH_DIM), Axis.SEQUENCE: Dim("sequence", min=1, max=loaded.max_sequence)}
    shapes = tuple({place: dims[d] for place, d in enumerate(spec.shape) if isinstance(d, Axis) and d in axes} for spec in loaded.inputs)
    examples = loaded.examples(EXAMPLE_BATCH, EXAMPLE_SEQUENCE, seed=0)
    logging.getLogger("torch").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # one entry for the variadic argument of the wrapping module
        return torch.export.export(loaded.module, examples, dynamic_shapes=(shapes,), strict=False)


def _describe(program: ExportedProgram, loaded: Loaded) -> Exported:
    names = tuple(spec.name for spec in loaded.inputs)

    def rename(name: str) -> str:
        return name.removeprefix(loaded.prefix)

    flat = flatten(program, names, lambda count: output_names(count, loaded.output_names), rename)
    signature = _signature(flat, names, output_names(len(flat.outputs), loaded.output_names))
    missing = sorted(loaded.suspect & {name for name, _ in flat.tensors})
    if missing:
        raise Unsupported(
            f"weights: {', '.join(missing[:5])} {'is' if len(missing) == 1 else 'are'} in no weight file, and the model reads them"
        )
    return Exported(program, flat, signature, loaded)


def _signature(flat: Flat, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Signature:
    def spec(name: str, value: torch.Tensor) -> TensorSpec:
        shape = tuple(length if isinstance(length, int) else -1 for length in value.shape)
        return TensorSpec(name, datatype_of(value.dtype, name), shape)

    values = [*flat.inputs, *flat.outputs]
    first: set[Any] = {_symbol(value.shape[0]) if value.dim() else None for value in values}
    batched = len(first) == 1 and None not in first
    if batched:
        # a batch that is also another dimension (similarities of all with all) must not be joined with other requests
        batch = next(iter(first))
        batched = not any(batch in (_symbol(length) or "") for value in values for length in value.shape[1:])
    return Signature(
        inputs=tuple(spec(name, value) for name, value in zip(inputs, flat.inputs, strict=True)),
        outputs=tuple(spec(name, value) for name, value in zip(outputs, flat.outputs, strict=True)),
        batched=batched,
    )


def _symbol(length: Any) -> str | None:
    return None if isinstance(length, int) else str(length.node.expr)
