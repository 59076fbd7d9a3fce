"""How a variant is built from an export: one module per recipe, imported when it is wanted. Uses `onnx`; serving does not.

A recipe's module has `make(work) -> Built`. Names: docs/nomenclature.md.
"""

from __future__ import annotations

import importlib

from tessera.domain.errors import InvalidInput
from tessera.runtime.recipes.base import Built, Work

_MODULES = {
    "ort-fp32": "tessera.runtime.recipes.fp32",
    "ort-fp32-prepacked": "tessera.runtime.recipes.prepacked",
    "ort-int8": "tessera.runtime.recipes.int8",
    "ort-int8-dynamic": "tessera.runtime.recipes.int8_dynamic",
}


def check(recipe: str) -> None:
    """Raises: InvalidInput when there is no such recipe; it lists those that exist."""
    if recipe not in _MODULES:
        raise InvalidInput("recipe", recipe, f"must be one of {', '.join(_MODULES)}")


def make(recipe: str, work: Work) -> Built:
    """Builds `work` by the recipe.

    Raises:
        InvalidInput: there is no such recipe.
        Internal: ONNX Runtime fails; says at what.
    """
    check(recipe)
    built: Built = importlib.import_module(_MODULES[recipe]).make(work)
    return built
