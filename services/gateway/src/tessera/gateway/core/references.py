"""From what a client writes (`model_name`, `model_version`) to a task, or one version and one variant where it was named."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tessera.domain.errors import InvalidInput, ModelNotFound, NotFound, VersionNotFound
from tessera.domain.ids import ModelName, TrustDomain, VariantName, VersionKey, VersionNumber, checked_name, parse_reference, parse_version
from tessera.domain.records import AliasRecord
from tessera.domain.tasks import TASK_PREFIX


@dataclass(frozen=True, slots=True)
class Resolved:
    """`follows`: neither the name nor what it is an alias of says a version."""

    version: VersionKey
    variant: VariantName | None = None
    follows: bool = False


def task_of(model_name: str, model_version: str, tasks: Collection[str]) -> str | None:
    """The task of `task:NAME`; None for every other name.

    Raises:
        InvalidInput: a version beside it. NotFound: no model has the task, or it cannot be one's name.
    """
    if not model_name.startswith(TASK_PREFIX):
        return None
    task = model_name[len(TASK_PREFIX) :]
    if model_version:
        raise InvalidInput("model_version", model_version[:40], f"{model_name[:160]!r} stands for several models and takes none")
    try:
        checked_name("task", task)
    except InvalidInput as error:
        raise NotFound(error.message) from None
    if task not in tasks:
        raise NotFound(f"no model is registered for task {task!r}{'; there are ' + ', '.join(sorted(tasks)) if tasks else ''}")
    return task


def resolve(
    model_name: str,
    model_version: str,
    *,
    trust_domain: TrustDomain,
    answering: Mapping[ModelName, VersionNumber],
    aliases: Mapping[ModelName, AliasRecord],
    versions: Mapping[ModelName, Collection[VersionNumber]],
) -> Resolved:
    """Reads NAME, ALIAS, NAME@VERSION or NAME@VERSION/VARIANT and an optional version beside it. `answering`: of each model, the version
    that its name alone stands for.

    Raises:
        InvalidInput: the name is empty, the version is no number, or the two versions differ.
        ModelNotFound, VersionNotFound: also for a name that no model could have.
    """
    if not model_name:
        raise InvalidInput("model_name", "", "must not be empty")
    asked = parse_version(model_version) if model_version else None
    try:
        reference = parse_reference(model_name)
    except InvalidInput as error:
        raise ModelNotFound(model_name[:160], error.message) from None
    if reference.version is not None:
        if asked is not None and asked != reference.version:
            raise InvalidInput("model_version", model_version, f"model_name says version {reference.version}")
        asked = reference.version
    name = reference.name
    alias = aliases.get(name)
    if alias is not None:
        if alias.version is not None:
            if asked is not None and asked != alias.version:
                raise VersionNotFound(name, asked, f"only {alias.version}: it is an alias of {alias.model}@{alias.version}")
            asked = alias.version
        name = alias.model
    if name not in answering:
        raise ModelNotFound(reference.name, f"the alias stands for {name!r}" if alias is not None else "")
    known = versions.get(name, ())
    number = asked if asked is not None else answering[name]
    if number not in known:
        raise VersionNotFound(name, number, ", ".join(str(n) for n in sorted(known)))
    return Resolved(VersionKey(trust_domain, name, number), reference.variant, follows=asked is None)
