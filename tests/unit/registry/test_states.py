"""The state tables of jobs and variants: forward only, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from tessera.domain.errors import DataCorrupted, FailedPrecondition
from tessera.domain.ids import Digest, ModelName, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.domain.records import VariantRecord, VariantState
from tessera.registry.core import jobs, variants
from tessera.registry.core.jobs import JobStep
from tessera.registry.core.manifest import SourceFile
from tessera.registry.core.source import BuilderCall, Registration

KEY = VariantKey(TrustDomain("default"), ModelName("m"), VersionNumber(1), VariantName("ort-fp32"))
VARIANT_STEPS = {
    ("pending", "building"), ("pending", "failed"), ("building", "building"), ("building", "ready"), ("building", "failed"),
    ("failed", "building"),
}  # fmt: skip
JOB_STEPS = {
    ("importing", "storing"), ("importing", "failed"), ("storing", "variants"), ("storing", "ended"), ("storing", "importing"),
    ("storing", "failed"), ("variants", "ended"),
}  # fmt: skip


@pytest.mark.parametrize(("now", "then"), list(product(VariantState, VariantState)))
def test_variant_steps(now: VariantState, then: VariantState) -> None:
    record = VariantRecord(KEY, "ort", "ort", "fp32", now, 1, reason="before")
    if (now.value, then.value) in VARIANT_STEPS:
        assert variants.step(record, then, "why") == replace(record, state=then, reason="why")
    else:
        with pytest.raises(FailedPrecondition, match=f"{now.value} to {then.value}"):
            variants.step(record, then)


@pytest.mark.parametrize(("now", "then"), list(product(JobStep, JobStep)))
def test_job_steps(now: JobStep, then: JobStep) -> None:
    if (now.value, then.value) in JOB_STEPS:
        assert jobs.step(now, then) is then
    else:
        with pytest.raises(FailedPrecondition):
            jobs.step(now, then)


def test_job_record_gives_the_registration_back() -> None:
    files = (SourceFile("a/b.safetensors", 12, Digest("a" * 64)),)
    whole = Registration(
        TrustDomain("d"), ModelName("m"), "t", "s", 0.25, files, BuilderCall("p:f", {"x": [1, None, {"y": "z"}]}, -3), attempt=2
    )
    text = jobs.payload_of(whole, Digest("c" * 64))
    assert jobs.registration_of(TrustDomain("d"), ModelName("m"), text) == (whole, Digest("c" * 64))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"task": 1}'])
def test_payload_that_is_none(text: str) -> None:
    with pytest.raises(DataCorrupted, match="job of model m"):
        jobs.registration_of(TrustDomain("d"), ModelName("m"), text)
