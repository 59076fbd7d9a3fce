"""What a registration asks for, and when two of them ask for the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest, ModelName, TrustDomain, checked_name
from tessera.registry.core.manifest import SourceFile

RECIPE = 1
"""Raised when the importer makes something else of the same source; registering again then makes a new version."""

BUILT_IN = ModelName("identity")


@dataclass(frozen=True, slots=True)
class BuilderCall:
    """`arguments` are JSON values."""

    reference: str
    arguments: dict[str, Any]
    seed: int


@dataclass(frozen=True, slots=True)
class Registration:
    """A checked request. `builder` is None where the files themselves are the model; else the files are its weights."""

    trust_domain: TrustDomain
    name: ModelName
    task: str
    dataset: str
    accuracy: float | None
    files: tuple[SourceFile, ...]
    builder: BuilderCall | None = None
    attempt: int = field(default=1)


def source_digest(registration: Registration, hasher: Callable[[bytes], Digest]) -> Digest:
    """Equal for registrations that would make the same version: name, task, dataset, the files by path and content, builder, recipe.

    The accuracy is not part of it: it says something about the model and changes nothing in it.
    """
    builder = registration.builder
    text = {
        "recipe": RECIPE,
        "name": registration.name,
        "task": registration.task,
        "dataset": registration.dataset,
        "files": [[file.path, file.size_bytes, file.digest] for file in sorted(registration.files)],
        "builder": None if builder is None else [builder.reference, builder.arguments, builder.seed],
    }
    return hasher(json.dumps(text, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def checked_registration(registration: Registration, allowed_builders: tuple[str, ...]) -> Registration:
    """Raises:
    InvalidInput: names the field, the value and the rule.
    """
    checked_name("trust domain", registration.trust_domain)
    checked_name("model name", registration.name)
    if registration.name == BUILT_IN:
        raise InvalidInput("model name", registration.name, "is the name of the built-in model")
    for label, value in (("task", registration.task), ("dataset", registration.dataset)):
        if value:
            checked_name(label, value)
    accuracy = registration.accuracy
    if accuracy is not None and not 0.0 <= accuracy <= 1.0:
        raise InvalidInput("accuracy", accuracy, "must be from 0 to 1")
    builder = registration.builder
    if builder is not None and builder.reference not in allowed_builders:
        raise InvalidInput("builder", builder.reference[:200], f"must be one of {', '.join(allowed_builders)}")
    return registration


def parse_argument(name: str, text: str) -> Any:
    """A builder argument: a JSON value, or else the text itself.

    Raises:
        InvalidInput: the name is no identifier.
    """
    if not name.isidentifier():
        raise InvalidInput("builder argument", name[:80], "must be a name")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(text: str) -> Any:
    raise ValueError(text)
