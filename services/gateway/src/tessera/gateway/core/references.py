"""From what a client writes (`model_name`, `model_version`) to one version, and one variant where it was named."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tessera.domain.errors import InvalidInput, ModelNotFound, VersionNotFound
from tessera.domain.ids import ModelName, TrustDomain, VariantName, VersionKey, VersionNumber, parse_reference, parse_version
from tessera.domain.records import AliasRecord, ModelRecord


@dataclass(frozen=True, slots=True)
class Resolved:
    version: VersionKey
    variant: VariantName | None = None


def resolve(
    model_name: str,
    model_version: str,
    *,
    trust_domain: TrustDomain,
    models: Mapping[ModelName, ModelRecord],
    aliases: Mapping[ModelName, AliasRecord],
    versions: Mapping[ModelName, Collection[VersionNumber]],
) -> Resolved:
    """Reads NAME, ALIAS, NAME@VERSION or NAME@VERSION/VARIANT and an optional version beside it.

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
    model = models.get(name)
    if model is None:
        raise ModelNotFound(reference.name, f"the alias stands for {name!r}" if alias is not None else "")
    known = versions.get(name, ())
    number = asked if asked is not None else model.latest
    if number not in known:
        raise VersionNotFound(name, number, ", ".join(str(n) for n in sorted(known)))
    return Resolved(VersionKey(trust_domain, name, number), reference.variant)
