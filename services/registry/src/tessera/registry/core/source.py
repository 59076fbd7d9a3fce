"""What a registration asks for, and when two of them ask for the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tessera.domain.accuracy import DEFAULT_ALLOWANCE
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest, ModelName, TrustDomain, checked_name
from tessera.evaluation import MAX_SET_BYTES, metric
from tessera.registry.core.manifest import SourceFile
from tessera.registry.core.recipes import checked_recipes

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
class Demands:
    """What variants of a version are measured by. `metric` says how the evaluation set is scored; `allow_loss` is what a lossy variant may
    lose; `recipes` are made beside the base ones (None: the registry's own list)."""

    evaluation: SourceFile | None = None
    metric: str = ""
    calibration: SourceFile | None = None
    allow_loss: float = DEFAULT_ALLOWANCE
    recipes: tuple[str, ...] | None = None

    @property
    def sets(self) -> tuple[SourceFile, ...]:
        return tuple(file for file in (self.evaluation, self.calibration) if file is not None)


@dataclass(frozen=True, slots=True)
class Registration:
    """A checked request. `builder` is None where the files themselves are the model; else the files are its weights. `lossy`: whether plain
    requests may get a lossy variant (None: as it is)."""

    trust_domain: TrustDomain
    name: ModelName
    task: str
    dataset: str
    accuracy: float | None
    files: tuple[SourceFile, ...]
    builder: BuilderCall | None = None
    attempt: int = field(default=1)
    demands: Demands = Demands()
    lossy: bool | None = None

    @property
    def uploads(self) -> tuple[SourceFile, ...]:
        """Everything that has to be sent: the model's files and the sets."""
        return (*self.files, *self.demands.sets)


def source_digest(registration: Registration, hasher: Callable[[bytes], Digest]) -> Digest:
    """Equal for registrations that would make the same version: name, task, dataset, the files by path and content, builder, recipe, and
    what its variants are measured by.

    The accuracy is not part of it, nor whether lossy variants are welcome: they say something about the model and change nothing in it.
    """
    builder, demands = registration.builder, registration.demands
    text = {
        "recipe": RECIPE,
        "name": registration.name,
        "task": registration.task,
        "dataset": registration.dataset,
        "files": [[file.path, file.size_bytes, file.digest] for file in sorted(registration.files)],
        "builder": None if builder is None else [builder.reference, builder.arguments, builder.seed],
        "evaluation": None if demands.evaluation is None else [demands.evaluation.digest, demands.metric],
        "calibration": None if demands.calibration is None else demands.calibration.digest,
        "allow_loss": demands.allow_loss,
        "recipes": None if demands.recipes is None else list(demands.recipes),
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
    return replace(registration, demands=_checked_demands(registration.demands))


def _checked_demands(demands: Demands) -> Demands:
    if demands.evaluation is not None:
        if not demands.metric:
            raise InvalidInput("metric", "", "must say how the evaluation set is scored")
        metric(demands.metric)
    elif demands.metric:
        raise InvalidInput("metric", demands.metric[:80], "scores an evaluation set; there is none")
    for what, file in (("evaluation set", demands.evaluation), ("calibration set", demands.calibration)):
        if file is not None and file.size_bytes > MAX_SET_BYTES:
            raise InvalidInput(what, f"{file.size_bytes} bytes", f"at most {MAX_SET_BYTES}")
    if not 0.0 <= demands.allow_loss <= 1.0:
        raise InvalidInput("allow_loss", demands.allow_loss, "must be from 0 to 1")
    return demands if demands.recipes is None else replace(demands, recipes=checked_recipes("variants", demands.recipes))


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
