"""Who refers to what: which aliases keep a version, and which blobs nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from tessera.domain.artifact import Blob
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import Digest, ModelName, VersionNumber
from tessera.domain.records import AliasRecord, VariantRecord, VersionRecord


def check_deletable(model: ModelName, delete: Set[VersionNumber], remaining: Set[VersionNumber], aliases: Iterable[AliasRecord]) -> None:
    """An alias keeps the version it names; one that follows the model keeps the last version.

    Raises:
        FailedPrecondition: names the aliases.
    """
    holding = sorted(
        alias.alias
        for alias in aliases
        if alias.model == model and (alias.version in delete if alias.version is not None else not remaining)
    )
    if holding:
        shown = ", ".join(holding[:10]) + (", ..." if len(holding) > 10 else "")
        raise FailedPrecondition(f"{_subject(model, delete, remaining)} is referred to by alias {shown}: delete or move it first")


def _subject(model: ModelName, delete: Set[VersionNumber], remaining: Set[VersionNumber]) -> str:
    if not remaining:
        return f"model {model!r}"
    return ", ".join(f"{model}@{version}" for version in sorted(delete))


def artifacts_of(versions: Iterable[VersionRecord], variants: Iterable[VariantRecord]) -> frozenset[Digest]:
    """Every artifact that a record refers to: exports of versions, artifacts of variants."""
    found = {digest for version in versions for digest in version.exports}
    found.update(variant.artifact for variant in variants if variant.artifact is not None)
    return frozenset(found)


def sets_of(versions: Iterable[VersionRecord]) -> frozenset[Digest]:
    """Every evaluation and calibration set that a version names: blobs by themselves."""
    found = {version.evaluation.digest for version in versions if version.evaluation is not None}
    found.update(version.calibration.digest for version in versions if version.calibration is not None)
    return frozenset(found)


def reachable(artifacts: Iterable[Digest], blobs: Mapping[Digest, Iterable[Blob]]) -> frozenset[Digest]:
    """The artifacts and every blob that they name."""
    found: set[Digest] = set()
    for artifact in artifacts:
        found.add(artifact)
        found.update(blob.digest for blob in blobs[artifact])
    return frozenset(found)
