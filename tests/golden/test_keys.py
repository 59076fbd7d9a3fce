"""The key schema, as text. A change here is a change of what every service finds in etcd: review it as such (`make golden` writes it)."""

from __future__ import annotations

import os
from pathlib import Path

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
    VersionNumber,
)

GOLDEN = Path(__file__).parent / "keys.txt"

LAB = TrustDomain("lab")
MODEL = ModelName("minilm")
KEY = VariantKey(LAB, MODEL, VersionNumber(3), VariantName("ort-fp32"))


def _schema() -> str:
    built = {
        "name": keys.name(LAB, MODEL),
        "model": keys.model(LAB, MODEL),
        "version": keys.version(KEY.version_key),
        "variant": keys.variant(KEY),
        "alias": keys.alias(LAB, ModelName("prod")),
        "source": keys.source(LAB, Digest("ab" * 32)),
        "profile": keys.profile(KEY, ProfileClass("x86_64-avx2")),
        "metacost": keys.meta_cost(LAB, "aten", ProfileClass("x86_64-avx2")),
        "job": keys.job(LAB, JobId("j1")),
        "batch": keys.batch(LAB, JobId("b1")),
        "node": keys.node(LAB, NodeId("node-0")),
        "instance": keys.instance(LAB, NodeId("node-0"), InstanceId("i1")),
        "assignment": keys.assignment(LAB, NodeId("node-0"), InstanceId("i1")),
        "load": keys.load(LAB, NodeId("node-0"), InstanceId("i1")),
        "service": keys.service("gateway", "g1"),
        "election": keys.SCHEDULER_ELECTION,
        "batching": keys.BATCH_ELECTION,
    }
    return "".join(f"{what:<11}{key}\n" for what, key in built.items())


def test_the_key_schema_is_the_reviewed_one() -> None:
    if os.environ.get("TESSERA_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(_schema())
    assert _schema() == GOLDEN.read_text()


def test_every_key_of_a_domain_lies_below_its_prefix() -> None:
    for line in _schema().splitlines():
        what, key = line.split()
        if what not in {"service", "election", "batching"}:
            assert key.startswith(keys.domain(LAB)), what
            assert keys.domain_of(key) == LAB, what
    assert not keys.domain(TrustDomain("lab2")).startswith(keys.domain(LAB))
