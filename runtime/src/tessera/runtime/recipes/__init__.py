"""How a variant is built from an export or a flat program: one module per recipe, imported when it is wanted. Uses `onnx`; serving does
not.

A recipe's module has `make(work) -> Built`, and `check_here(build_class)` where it needs more than the baker has anyway. Names:
docs/nomenclature.md. Other packages offer their `make` as an entry point of the group `tessera.recipes.make`, under the recipe's name; it
says itself what it lacks.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import cast

from tessera.domain.errors import InvalidInput, Unsupported
from tessera.domain.ids import BuildClass
from tessera.plugins import plugins
from tessera.runtime.recipes.base import Built, Work

_MODULES = {
    "ort-fp32": "tessera.runtime.recipes.fp32",
    "ort-fp32-prepacked": "tessera.runtime.recipes.prepacked",
    "ort-int8": "tessera.runtime.recipes.int8",
    "ort-int8-dynamic": "tessera.runtime.recipes.int8_dynamic",
    "aten-bf16": "tessera.runtime.recipes.bf16",
    "aoti-fp32": "tessera.runtime.recipes.aoti",
}
_OF_FLAT_PROGRAMS = ("aten-bf16", "aoti-fp32")
GROUP = "tessera.recipes.make"


def check(recipe: str) -> None:
    """Raises: InvalidInput when there is no such recipe; it lists those that exist."""
    if recipe not in _MODULES and recipe not in plugins(GROUP):
        raise InvalidInput("recipe", recipe, f"must be one of {', '.join([*_MODULES, *plugins(GROUP)])}, which are installed here")


def source_of(recipe: str) -> str:
    """The backend of the artifacts that the recipe builds from: `onnx` (the export) or `aten` (the flat program)."""
    return "aten" if recipe in _OF_FLAT_PROGRAMS else "onnx"


def check_here(recipe: str, build_class: BuildClass) -> None:
    """Raises: Unsupported: the recipe needs what this machine, or a CPU of its class, does not have; says what."""
    if recipe in _OF_FLAT_PROGRAMS and importlib.util.find_spec("torch") is None:
        raise Unsupported(f"{recipe} needs torch where the node's agent bakes: it is not installed there")
    module = importlib.import_module(_MODULES[recipe]) if recipe in _MODULES else None
    check: Callable[[BuildClass], None] | None = getattr(module, "check_here", None)
    if check is not None:
        check(build_class)


def make(recipe: str, work: Work) -> Built:
    """Builds `work` by the recipe.

    Raises:
        InvalidInput: there is no such recipe.
        Unsupported: it cannot do this graph; says why.
        FailedPrecondition: the package that offers it cannot be imported.
        Internal: ONNX Runtime fails; says at what.
    """
    check(recipe)
    make = importlib.import_module(_MODULES[recipe]).make if recipe in _MODULES else plugins(GROUP)[recipe]
    return cast(Built, make(work))
