"""Every key as it is written: changing one is a migration, so it must be seen here."""

from __future__ import annotations

from tessera.coord import keys
from tessera.domain.ids import (
    Digest,
    InstanceId,
    JobId,
    ModelName,
    NodeId,
    ProfileClass,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionKey,
    VersionNumber,
)

D = TrustDomain("default")
M = ModelName("minilm")
VERSION = VersionKey(D, M, VersionNumber(3))
VARIANT = VariantKey(D, M, VersionNumber(3), VariantName("ort-fp32"))

SCHEMA = {
    "/tessera/v1/d/default/names/minilm": (keys.name(D, M), keys.domain(D)),
    "/tessera/v1/d/default/models/minilm": (keys.model(D, M), keys.models(D)),
    "/tessera/v1/d/default/versions/minilm/3": (keys.version(VERSION), keys.versions(D)),
    "/tessera/v1/d/default/variants/minilm/3/ort-fp32": (keys.variant(VARIANT), keys.variants_of(VERSION)),
    "/tessera/v1/d/default/aliases/minilm": (keys.alias(D, M), keys.aliases(D)),
    "/tessera/v1/d/default/sources/ab": (keys.source(D, Digest("ab")), keys.domain(D)),
    "/tessera/v1/d/default/profiles/minilm/3/ort-fp32/pc": (keys.profile(VARIANT, ProfileClass("pc")), keys.profiles_of(VERSION)),
    "/tessera/v1/d/default/meta-costs/aten/pc": (keys.meta_cost(D, "aten", ProfileClass("pc")), keys.meta_costs(D)),
    "/tessera/v1/d/default/jobs/j": (keys.job(D, JobId("j")), keys.jobs(D)),
    "/tessera/v1/d/default/nodes/n": (keys.node(D, NodeId("n")), keys.nodes(D)),
    "/tessera/v1/d/default/instances/n/i": (keys.instance(D, NodeId("n"), InstanceId("i")), keys.instances(D)),
    "/tessera/v1/d/default/assignments/n/i": (keys.assignment(D, NodeId("n"), InstanceId("i")), keys.assignments_of(D, NodeId("n"))),
    "/tessera/v1/services/gateway/g": (keys.service("gateway", "g"), keys.SERVICES),
}


def test_the_schema_is_as_written_down() -> None:
    assert [key for key, _ in SCHEMA.values()] == list(SCHEMA)
    assert keys.SCHEDULER_ELECTION == "/tessera/v1/elections/scheduler/"


def test_each_key_is_below_its_prefix_and_each_prefix_ends_with_a_slash() -> None:
    for key, prefix in SCHEMA.values():
        assert key.startswith(prefix)
        assert prefix.endswith("/")
        assert prefix.startswith(keys.ROOT)
    assert keys.variants_of(VERSION).startswith(keys.variants(D))
    assert keys.profiles_of(VERSION).startswith(keys.profiles(D))
    assert keys.assignments_of(D, NodeId("n")).startswith(keys.assignments(D))


def test_trust_domains_do_not_see_each_other() -> None:
    assert not keys.models(TrustDomain("a")).startswith(keys.domain(TrustDomain("ab")))
    assert not keys.models(TrustDomain("ab")).startswith(keys.domain(TrustDomain("a")))
