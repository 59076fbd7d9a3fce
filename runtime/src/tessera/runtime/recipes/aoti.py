"""`aoti-fp32`: the flat ATen program compiled by AOTInductor. Takes a minute of a core and needs a C++ compiler on the node.

Constants stay outside the library and keep their bytes: the build shares every tensor with `aten-fp32`. Only tensors that the compiled
program reads are among its constants; others (folded shapes, unused buffers) are left out of the artifact.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from tessera.domain.errors import Unsupported
from tessera.domain.ids import BuildClass
from tessera.domain.signature import Signature
from tessera.runtime.backends.aoti.package import Constant, Header, pack
from tessera.runtime.backends.aten.program import execute, read_plan
from tessera.runtime.backends.aten.values import to_torch
from tessera.runtime.recipes.base import Built, Work
from tessera.runtime.recipes.lengths import tied

_COMPILERS = ("g++", "clang++", "c++")
_MARCH = {
    **dict.fromkeys(("amx_int8", "avx512_bf16", "avx512_vnni", "avx512"), "x86-64-v4"),
    **dict.fromkeys(("avx_vnni", "avx2"), "x86-64-v3"),
}
"""Instruction set of a build class -> what the compiler may use, so that the library runs on every CPU of the class."""

_Shapes = tuple[tuple[int | str, ...], ...]
"""Of each input: numbers, and names of lengths that vary."""


def make(work: Work) -> Built:
    """Raises:
    Unsupported: the program cannot be traced or compiled; says why.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work.scratch / "inductor")
    work.progress("tracing", 0.1)
    module, names = _module(work)
    signature = work.artifact.signature
    case = work.cases[min(1, len(work.cases) - 1)]  # a batch of two: 0 and 1 are special to the tracer
    given = tuple(to_torch(case.inputs[spec.name].array.copy(), spec.datatype) for spec in signature.inputs)
    program = _traced(module, given, signature)
    shapes, longest = _lengths(program, module, given)
    _check_varying(signature, shapes)
    work.progress("compiling", 0.2)
    path = work.scratch / "model.pt2"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=_configuration(work.build_class))
        library = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except Exception as error:  # inductor, the compiler and the linker each have their own
        raise Unsupported(f"AOTInductor cannot compile the program: {_line(error)}") from error
    refs = {ref.slot: ref for ref in work.artifact.tensors}
    read = {name: refs[names[name]] for name in sorted(library.get_constant_fqns())}
    header = Header(
        torch=str(torch.__version__),
        constants={name: Constant(ref.slot, ref.dtype, ref.shape) for name, ref in read.items()},
        inputs=tuple(spec.name for spec in signature.inputs),
        outputs=tuple(spec.name for spec in signature.outputs),
        shapes=shapes,
        longest=longest,
    )
    tensors = {ref.slot: (work.tensors[ref.slot], ref.dtype) for ref in read.values()}
    return Built(pack(header, path.read_bytes()), tensors, work.artifact.precision, exact=True, backend="aoti", dialect="aoti")


def check_here(_: BuildClass) -> None:
    """Raises: Unsupported when no C++ compiler is here."""
    named = os.environ.get("CXX")
    if not any(map(shutil.which, (named,) if named else _COMPILERS)):
        raise Unsupported(f"aoti-fp32 needs a C++ compiler on the node: {named or ', '.join(_COMPILERS)} is not on PATH")


def _configuration(build_class: BuildClass) -> dict[str, Any]:
    return {
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.precompile_headers": False,  # pays from the second program on, and its cache goes with this build
        # An index out of bounds is an exception, which no parallel region lets out: it would end the runtime. Generated loops run in one
        # thread; products and convolutions are torch's own and use the runtime's.
        "cpp.threads": 1,
        "cpp.march": _MARCH.get(build_class.split("-")[1]),
    }


def _module(work: Work) -> tuple[Any, dict[str, str]]:
    """The flat program as a module, and slots by the names of its constants (which may hold no dots)."""
    plan = read_plan(work.graph)
    names = {f"w{place}": tensor.name for place, tensor in enumerate(plan.tensors)}

    class Flat(torch.nn.Module):  # type: ignore[misc] # torch is not followed
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in zip(names, plan.tensors, strict=True):
                # a copy: tied weights are two constants, as they are two slots
                self.register_buffer(name, to_torch(work.tensors[tensor.name], tensor.dtype).clone())

        def forward(self, *given: Any) -> tuple[Any, ...]:
            bound: list[Any] = [None] * plan.slots
            for name, tensor in zip(names, plan.tensors, strict=True):
                bound[tensor.slot] = getattr(self, name)
            return tuple(execute(plan, bound, dict(zip((port.name for port in plan.inputs), given, strict=True))))

    return Flat().eval(), names


def _traced(module: Any, given: tuple[Any, ...], signature: Signature) -> Any:
    """Raises: Unsupported: torch.export does not take it."""
    shapes = tuple({place: Dim.AUTO for place, size in enumerate(spec.shape) if size < 0} for spec in signature.inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, given, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # torch.export raises a dozen classes
        raise Unsupported(f"torch.export cannot trace the flat program: {_line(error)}") from error


def _lengths(program: Any, module: Any, given: tuple[Any, ...]) -> tuple[_Shapes, dict[str, int]]:
    """The inputs' shapes, lengths that must be equal under one name, and the most that each may be; those without a bound are left out.

    Raises:
        Unsupported: a length is computed from another one.
    """
    traced = _shapes(program)
    sizes = {name: size for shape, value in zip(traced, given, strict=True) for name, size in zip(shape, value.shape, strict=True)}

    def takes(lengths: Mapping[str, int]) -> bool:
        shaped = ([length if isinstance(length, int) else lengths[length] for length in shape] for shape in traced)
        try:
            with torch.inference_mode():
                module(*(torch.from_numpy(np.resize(value.numpy(), shape)) for value, shape in zip(given, shaped, strict=True)))
        except (RuntimeError, IndexError, ValueError):
            return False
        return True

    names = tied({name: size for name, size in sizes.items() if isinstance(name, str)}, takes)
    longest: dict[str, int] = {}
    for symbol, bounds in program.range_constraints.items():
        if str(symbol) in names and bounds.upper.is_Integer:
            name = names[str(symbol)]
            longest[name] = min(int(bounds.upper), longest.get(name, int(bounds.upper)))
    return tuple(tuple(names.get(str(length), length) for length in shape) for shape in traced), longest


def _shapes(program: Any) -> _Shapes:
    """The inputs' shapes as the tracer sees them: numbers, and names of what varies.

    Raises:
        Unsupported: a length is computed from another one.
    """
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for name in program.graph_signature.user_inputs:
        dims: list[int | str] = []
        for length in values[name].shape:
            if not isinstance(length, int) and not length.node.expr.is_Symbol:
                raise Unsupported(f"a dimension of input {name} varies as {length.node.expr}")
            dims.append(length if isinstance(length, int) else str(length.node.expr))
        found.append(tuple(dims))
    return tuple(found)


def _check_varying(signature: Signature, shapes: _Shapes) -> None:
    """Raises: Unsupported: what the signature lets vary is fixed in the program."""
    for spec, shape in zip(signature.inputs, shapes, strict=True):
        for place, (said, traced) in enumerate(zip(spec.shape, shape, strict=True)):
            if said < 0 and isinstance(traced, int):
                raise Unsupported(f"torch.export fixes dimension {place} of input {spec.name} at {traced}")


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else ''}"
