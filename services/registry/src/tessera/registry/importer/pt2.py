"""`.pt2` archives: exported programs with their weights, checked by `archive.py` before torch reads them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from tessera.domain.errors import InvalidInput, TesseraError, Unsupported
from tessera.registry.importer.archive import check_archive
from tessera.registry.importer.loaded import Axis, InputSpec, Loaded, output_names


class _Program(torch.nn.Module):  # type: ignore[misc] # torch is not followed
    """The program run by torch itself: what the flat program is compared with. Answers with a flat tuple of tensors."""

    def __init__(self, program: ExportedProgram, keywords: tuple[str, ...]) -> None:
        super().__init__()
        self._call = program.module(check_guards=False)
        self._keywords = keywords

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        split = len(tensors) - len(self._keywords)
        found = self._call(*tensors[:split], **dict(zip(self._keywords, tensors[split:], strict=True)))
        leaves = torch.utils._pytree.tree_leaves(found)
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def load(path: Path, shown: str) -> Loaded:
    """Raises:
    InvalidInput: the archive cannot be read.
    Unsupported: it holds what is not imported; says what would work.
    """
    samples = check_archive(path, shown)
    _check_samples(path, samples, shown)
    try:
        program = torch.export.load(path)
    except (TesseraError, PermissionError):
        raise
    except Exception as error:
        raise InvalidInput("file", shown, f"torch.export.load refuses it: {str(error).strip().splitlines()[0][:400]}") from error
    program._guards_code = []  # Python text that torch would run; the importer checks by numbers instead
    for name, tensor in [*program.state_dict.items(), *program.constants.items()]:
        if not isinstance(tensor, torch.Tensor):
            raise Unsupported(f"{shown}: constant {name!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.dtype.is_floating_point and tensor.dtype is not torch.float32:
            raise Unsupported(f"{shown}: {name} is {str(tensor.dtype).removeprefix('torch.')}; export the model in float32")
    inputs = _inputs(program, shown)
    spec = program.call_spec.out_spec
    given = [str(key) for key in spec.context] if spec is not None and spec.type is dict else []
    count = sum(1 for entry in program.graph_signature.output_specs if isinstance(entry.arg, TensorArgument))
    module = _Program(program, _keywords(program, shown))
    return Loaded(module, inputs, output_names(count, given), program=program)


def _check_samples(path: Path, record: str, shown: str) -> None:
    with zipfile.ZipFile(path) as archive:
        data = archive.read(record)
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise Unsupported(
            f"{shown}: {record.partition('/')[2]} is pickled with classes of its own ({reason}); export with plain tensors as inputs"
        ) from error


def _keywords(program: ExportedProgram, shown: str) -> tuple[str, ...]:
    """Names of the inputs that are given by keyword, in their order (positional ones come first)."""
    spec = program.call_spec.in_spec
    positional, keywords = spec.child(0), spec.child(1)
    if any(not child.is_leaf() for child in [*positional.children(), *keywords.children()]):
        raise Unsupported(f"{shown}: the program takes nested inputs; inputs must be tensors, one per argument")
    return tuple(str(key) for key in keywords.context or ())


def _inputs(program: ExportedProgram, shown: str) -> tuple[InputSpec, ...]:
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    if not names or len(names) != len(program.graph_signature.user_inputs):
        raise Unsupported(f"{shown}: the program takes {program.graph_signature.user_inputs}; inputs must be tensors, at least one")
    batch: Any = None
    found = []
    for name in names:
        value = nodes[name].meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise Unsupported(f"{shown}: input {name!r} is no tensor: inputs must be tensors")
        dims: list[int | Axis] = []
        for place, length in enumerate(value.shape):
            if isinstance(length, int):
                dims.append(length)
                continue
            expression = length.node.expr
            if not expression.is_Symbol:
                raise Unsupported(
                    f"{shown}: dimension {place} of input {name!r} varies as {expression}; let it vary freely, or give it a fixed length"
                )
            if place == 0 and batch is None:
                batch = expression
            dims.append(Axis.BATCH if expression == batch else Axis.SEQUENCE)
        found.append(InputSpec(name, value.dtype, tuple(dims)))
    return tuple(found)
