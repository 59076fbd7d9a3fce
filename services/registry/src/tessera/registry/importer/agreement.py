"""Does a build answer as the model does? `max|a-b| <= 1e-4 * max(1, max|b|)` on two batch sizes and two lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tessera.domain.artifact import Artifact, TensorRef
from tessera.domain.errors import TesseraError, Unsupported
from tessera.domain.ids import Digest
from tessera.domain.signature import Signature
from tessera.registry.importer.dtypes import raw_bytes
from tessera.registry.importer.export import Exported
from tessera.registry.importer.loaded import EXAMPLE_SEQUENCE, Axis, Loaded
from tessera.runtime.backends import create
from tessera.runtime.backends.interface import BackendConfig, Tensor

TOLERANCE = 1e-4
Run = Callable[[Sequence[torch.Tensor]], Sequence[npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs, and what the model itself answers in eager mode."""

    what: str
    inputs: tuple[torch.Tensor, ...]
    expected: tuple[npt.NDArray[Any], ...]


def cases(loaded: Loaded) -> list[Case]:
    """Two batch sizes, one of them 1, and two lengths where the length varies.

    Raises:
        Unsupported: the model does not take them.
    """
    dims = {dim for spec in loaded.inputs for dim in spec.shape}
    batches = (1, 3) if Axis.BATCH in dims else (1,)
    made = []
    for place, batch in enumerate(batches):
        length = EXAMPLE_SEQUENCE - 5 * (1 - place)
        inputs = loaded.examples(batch, length, seed=1 + place)
        shapes = ", ".join(f"{spec.name} {list(value.shape)}" for spec, value in zip(loaded.inputs, inputs, strict=True))
        try:
            with torch.no_grad():
                found = loaded.module(*inputs)
        except (RuntimeError, ValueError, IndexError) as error:
            raise Unsupported(f"the model itself fails with {shapes}: {str(error).strip().splitlines()[0][:300]}") from error
        made.append(Case(shapes, inputs, tuple(value.detach().numpy().copy() for value in found)))
    return made


def check(what: str, run: Run, on: Sequence[Case], names: Sequence[str]) -> None:
    """Raises: Unsupported naming the output, the inputs and the difference when `run` disagrees or fails."""
    for case in on:
        try:
            found = run(case.inputs)
        except TesseraError as error:
            raise Unsupported(f"{what} fails with {case.what}: {error}") from error
        if len(found) != len(case.expected):
            raise Unsupported(f"{what} answers with {len(found)} tensors, the model with {len(case.expected)}")
        for name, value, expected in zip(names, found, case.expected, strict=True):
            _compare(what, name, value, expected, case.what)


def _compare(what: str, name: str, value: npt.NDArray[Any], expected: npt.NDArray[Any], inputs: str) -> None:
    if value.shape != expected.shape or value.dtype != expected.dtype:
        raise Unsupported(
            f"{what}: output {name} is {value.dtype}{list(value.shape)}, the model's is {expected.dtype}{list(expected.shape)} ({inputs})"
        )
    if not expected.size:
        return
    if expected.dtype.kind != "f":
        different = int((value != expected).sum())
        if different:
            raise Unsupported(f"{what}: {different} of {expected.size} values of output {name} differ from the model's ({inputs})")
        return
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(value), finite) or not np.array_equal(value[~finite], expected[~finite], equal_nan=True):
        raise Unsupported(f"{what}: output {name} has other infinities or NaNs than the model's ({inputs})")
    if not finite.any():
        return
    bound = TOLERANCE * max(1.0, float(np.abs(expected[finite]).max()))
    difference = float(np.abs(value[finite] - expected[finite]).max())
    if difference > bound:
        raise Unsupported(f"{what}: output {name} differs from the model's by {difference:.3g}, allowed is {bound:.3g} ({inputs})")


class _Memory:
    """The blobs of an artifact that is still in memory."""

    def __init__(self, exported: Exported) -> None:
        self._exported = exported

    def graph(self) -> bytes:
        return self._exported.flat.graph

    def tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        return {name: tensor.detach().contiguous().numpy() for name, tensor in self._exported.flat.tensors}

    def derived(self, make: Any) -> Any:
        return make()


def flat_runner(exported: Exported, folder: Path) -> Run:
    """Runs the flat program with the runtime's own `aten` backend.

    Raises:
        Unsupported: the backend refuses the program; names the operator.
    """
    refs = tuple(
        TensorRef(name, _datatype(exported, name, tensor), tuple(tensor.shape), Digest(""), len(raw_bytes(tensor)))
        for name, tensor in exported.flat.tensors
    )
    signature = exported.signature
    artifact = Artifact("aten", "fp32", "aten", None, None, refs, signature, None, 1)
    backend = create("aten", BackendConfig(threads=torch.get_num_threads(), folder=folder))
    loaded = backend.load(artifact, Digest("0" * 64), _Memory(exported))

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[npt.NDArray[Any]]:
        found = loaded.run(as_tensors(signature, inputs))
        return [found[spec.name].array for spec in signature.outputs]

    return run


def _datatype(exported: Exported, name: str, tensor: torch.Tensor) -> str:
    from tessera.registry.importer.dtypes import datatype_of

    return datatype_of(tensor.dtype, name)


def as_tensors(signature: Signature, inputs: Sequence[torch.Tensor]) -> dict[str, Tensor]:
    return {spec.name: Tensor(spec.datatype, value.contiguous().numpy()) for spec, value in zip(signature.inputs, inputs, strict=True)}
