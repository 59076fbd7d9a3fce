"""The recipes that the generator knows, which of them a version can gain from, and whether what was built may be offered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from tessera.domain.accuracy import Agreement
from tessera.domain.errors import FailedPrecondition, InvalidInput
from tessera.domain.ids import BuildClass, VariantName
from tessera.domain.recipe import Recipe
from tessera.domain.records import VariantRecord, VersionRecord
from tessera.plugins import plugins
from tessera.runtime.classes import has_bfloat16

ATEN = VariantName("aten-fp32")
ORT = VariantName("ort-fp32")
IDENTITY = VariantName("identity-any")

BASE = (ATEN, ORT)
"""Every version has them (of an ONNX file `ORT` alone); a registration that waits for its variants waits for these."""

GROUP = "tessera.recipes"
"""Entry points of other packages' recipes."""


def _convolutions(version: VersionRecord, _: BuildClass | None) -> bool:
    return version.convolutions > 0 and version.convolutions >= version.matrix_products


def _matrix_products(version: VersionRecord, _: BuildClass | None) -> bool:
    return version.matrix_products > version.convolutions


def _flat(version: VersionRecord, _: BuildClass | None) -> bool:
    return version.source_kind != "onnx"


def _in_bfloat16(version: VersionRecord, build_class: BuildClass | None) -> bool:
    products = version.convolutions + version.matrix_products
    return products > 0 and _flat(version, build_class) and build_class is not None and has_bfloat16(build_class)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("ort-int8", "int8", exact=False, gains=_convolutions),
        Recipe("ort-int8-dynamic", "int8", exact=False, gains=_matrix_products),
        Recipe("ort-fp32-prepacked", "fp32", exact=True, gains=_matrix_products),
        Recipe("aten-bf16", "bf16", exact=False, gains=_in_bfloat16, backend="aten", flavour="aten"),
        # A minute of a core for each version, and a C++ compiler: for who asks.
        Recipe("aoti-fp32", "fp32", exact=True, gains=_flat, backend="aoti", flavour="aten", by_default=False),
    )
}
DEFAULT_RECIPES = tuple(name for name, recipe in RECIPES.items() if recipe.by_default)


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """The recipes beside the base ones: Tessera's own, then those of installed packages, which cannot take an own one's name. What is
    installed is read once."""
    return (*RECIPES, *(name for name in plugins(GROUP) if name not in RECIPES and name not in BASE))


@lru_cache
def recipe_named(name: str) -> Recipe:
    """One of `names`.

    Raises:
        FailedPrecondition: the package that offers it cannot be imported, or makes another recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    made = plugins(GROUP)[name]()
    if not isinstance(made, Recipe) or made.name != name:
        raise FailedPrecondition(f"{GROUP}: {name!r} makes {made!r}, no recipe of that name")
    return made


def checked_recipes(field: str, asked: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, in their order; the base recipes, which are made anyway, left out.

    Raises:
        InvalidInput: one is no recipe.
        FailedPrecondition: as `recipe_named`.
    """
    for name in asked:
        if name not in names() and name not in BASE:
            raise InvalidInput(field, name[:80], f"must be among {', '.join((*BASE, *names()))}")
    return tuple(dict.fromkeys(recipe_named(name).name for name in asked if name not in BASE))


def wanted(version: VersionRecord, by_default: Sequence[str], build_class: BuildClass | None = None) -> tuple[str, ...]:
    """Recipes to build for a version beside the base ones, first ones first: what the user asked for, else those of the registry's list
    that it can gain from on nodes of the class. What no installed package offers any more is left out."""
    if version.recipes is not None:
        return tuple(name for name in version.recipes if name in names())
    return tuple(name for name in by_default if recipe_named(name).gains(version, build_class))


def recipe_of(variant: VariantRecord) -> str:
    """A variant of another build class has its recipe's name and a suffix."""
    return variant.recipe or variant.key.variant.partition(".")[0]


def is_base(variant: VariantRecord) -> bool:
    return recipe_of(variant) in (*BASE, IDENTITY)


def check_exact(recipe: str, agreement: Agreement) -> str:
    """Why what was built by an exact recipe may not be served; "" where it may."""
    if agreement.exact or (recipe not in BASE and not recipe_named(recipe).exact):
        return ""
    return f"differs from the registered model by {agreement.max_error:.3g}; {recipe} has to agree within 1e-4"


def withheld(agreement: Agreement, allowance: float) -> str:
    """Why a variant is served by name alone, with the numbers; "" where it is offered."""
    if agreement.exact or agreement.loss <= allowance:
        return ""
    if agreement.score is not None and agreement.reference_score is not None:
        found = f"scores {agreement.score:.4f} by {agreement.metric}, the registered model {agreement.reference_score:.4f}"
    else:
        found = (
            f"its answers to {agreement.samples} generated inputs have a mean cosine of {agreement.cosine:.4f} with the registered model's"
        )
    return f"{found}: loses {agreement.loss:.4f}, allowed is {allowance:g}"
