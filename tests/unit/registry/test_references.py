"""What keeps a version, and what keeps a blob."""

from __future__ import annotations

import pytest

from tessera.domain.artifact import Blob
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import Digest, ModelName, TrustDomain, VersionNumber
from tessera.domain.records import AliasRecord
from tessera.registry.core.references import check_deletable, reachable

M = ModelName("m")
V1, V2 = VersionNumber(1), VersionNumber(2)


def alias(name: str, version: VersionNumber | None, model: str = "m") -> AliasRecord:
    return AliasRecord(ModelName(name), TrustDomain("default"), ModelName(model), version)


def test_alias_of_the_version_blocks_it_by_name() -> None:
    with pytest.raises(FailedPrecondition, match="m@1 is referred to by alias prod, stage"):
        check_deletable(M, {V1}, {V2}, [alias("stage", V1), alias("prod", V1), alias("other", V2)])


def test_alias_that_follows_the_newest_keeps_the_last_version_only() -> None:
    check_deletable(M, {V2}, {V1}, [alias("live", None)])
    with pytest.raises(FailedPrecondition, match="model 'm' is referred to by alias live"):
        check_deletable(M, {V1}, set(), [alias("live", None)])


def test_aliases_of_other_models_do_not_matter() -> None:
    check_deletable(M, {V1, V2}, set(), [alias("x", V1, "n"), alias("y", None, "n")])


def test_long_list_is_cut() -> None:
    with pytest.raises(FailedPrecondition, match=r"a09, \.\.\.:"):
        check_deletable(M, {V1}, set(), [alias(f"a{i:02}", V1) for i in range(20)])


def test_blob_shared_with_another_artifact_stays_reachable() -> None:
    a, b, shared, own = (Digest(c * 64) for c in "abcd")
    blobs = {a: (Blob(shared, 1), Blob(own, 1)), b: (Blob(shared, 1),)}
    assert reachable([a], blobs) - reachable([b], blobs) == {a, own}
