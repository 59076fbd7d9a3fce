"""A model in memory, ready to be exported: the module, example inputs, and which of their dimensions vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch.export import ExportedProgram

from tessera.domain.errors import Unsupported

EXAMPLE_BATCH = 2
EXAMPLE_SEQUENCE = 16


class Axis(Enum):
    """What a dimension that may vary means."""

    BATCH = "batch"
    SEQUENCE = "sequence"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input. `shape` has an `Axis` where the model may take any length; `low`/`high` bound random integers (high exclusive).

    `mask` inputs are ones with some trailing zeros, as an attention mask is.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | Axis, ...]
    low: int = 0
    high: int = 2
    mask: bool = False

    def example(self, batch: int, sequence: int, generator: torch.Generator) -> torch.Tensor:
        """A random value of this input. dtype and shape as described."""
        lengths = {Axis.BATCH: batch, Axis.SEQUENCE: sequence}
        shape = [lengths[d] if isinstance(d, Axis) else d for d in self.shape]
        if self.mask:
            mask = torch.ones(shape, dtype=self.dtype)
            if batch > 1 and sequence > 3:
                mask[-1, sequence - sequence // 3 :] = 0
            return mask
        if self.dtype.is_floating_point:
            return torch.randn(shape, generator=generator, dtype=self.dtype)
        if self.dtype is torch.bool:
            return torch.randint(0, 2, shape, generator=generator).bool()
        return torch.randint(self.low, self.high, shape, generator=generator, dtype=self.dtype)


@dataclass(slots=True)
class Loaded:
    """`module` takes the inputs by position and returns a tuple of tensors named `output_names`.

    Where `program` is there the model came exported already; `module` then runs it. `prefix` is what the wrapping put in front of
    parameter names. `suspect` names parameters that no weight file had (an error if the model reads them).
    """

    module: torch.nn.Module
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    max_sequence: int = 512
    program: ExportedProgram | None = None
    prefix: str = ""
    suspect: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)

    def examples(self, batch: int, sequence: int, seed: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(spec.example(batch, sequence, generator) for spec in self.inputs)

    @property
    def has_sequence(self) -> bool:
        return any(Axis.SEQUENCE in spec.shape for spec in self.inputs)


def require_float32(module: torch.nn.Module, what: str) -> None:
    """Raises: Unsupported when a floating-point parameter or buffer has another dtype (there is no such precision yet)."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dtype.is_floating_point and tensor.dtype is not torch.float32:
            raise Unsupported(f"{what}: {name} is {str(tensor.dtype).removeprefix('torch.')}; convert the weights to float32")
        if tensor.is_complex():
            raise Unsupported(f"{what}: {name} is complex; the flat program has real tensors only")


def output_names(count: int, given: Sequence[str] = ()) -> tuple[str, ...]:
    """The model's own names where it has one for each output, else `output`, or `output_0`, `output_1`, ..."""
    if len(given) == count and len(set(given)) == count:
        return tuple(given)
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
