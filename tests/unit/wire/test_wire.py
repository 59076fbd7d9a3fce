"""What is sent comes back equal; what is malformed is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera import wire
from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import InvalidInput
from tessera.domain.fit import fit_of, saturation_items_per_s
from tessera.domain.ids import RuntimeId, Term, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.domain.records import LatencyRow, LoadCost
from tessera.domain.signature import Signature, TensorSpec
from tessera.domain.transformation import MetaOperator, Observation, StepSum
from tessera.testing import builders

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,40}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
sizes = st.integers(0, 2**64 - 1)
times = st.floats(0, 1e12)
small = st.integers(1, 2**32 - 1)
keys = st.builds(VariantKey, names.map(TrustDomain), names, st.integers(1, 999_999_999).map(VersionNumber), names.map(VariantName))
dimensions = st.integers(-1, 2**53)
stages = st.lists(st.builds(StageTime, st.sampled_from(Stage), times), max_size=8).map(tuple)


load_costs = st.builds(LoadCost, st.sampled_from(StartPath), stages, sizes)
rows = st.builds(LatencyRow, small, small, small, times, times, times, sizes, small, times)
sums = st.builds(StepSum, st.sampled_from(MetaOperator), names, small, sizes, sizes)
observations = st.builds(Observation, st.lists(sums, max_size=8).map(tuple), st.floats(1e-6, 1e6))
endpoints = st.builds(wire.Endpoint, names, names, names, names.map(RuntimeId))


@given(st.data())
def test_what_is_sent_comes_back_equal(data: st.DataObject) -> None:
    pairs: list[tuple[st.SearchStrategy[Any], Callable[[Any], Any], Callable[[Any], Any]]] = [
        (keys, wire.encode_variant_key, wire.decode_variant_key),
        (st.builds(Term, sizes, st.integers(1, 2**63 - 1)), wire.encode_term, wire.decode_term),
        (load_costs, wire.encode_load_cost, wire.decode_load_cost),
        (rows, wire.encode_latency_row, wire.decode_latency_row),
        (endpoints, wire.encode_endpoint, wire.decode_endpoint),
        (observations, wire.encode_observation, wire.decode_observation),
    ]
    for records, encode, decode in pairs:
        record = data.draw(records)
        message = encode(record)
        assert decode(type(message).FromString(message.SerializeToString())) == record


def test_what_is_only_sent_says_everything() -> None:
    signature = wire.encode_signature(Signature((TensorSpec("x", "ANY", (), True),), (TensorSpec("y", "FP32", (-1, 3)),), True))
    assert signature == common_pb2.Signature(
        inputs=[common_pb2.TensorSpec(name="x", datatype="ANY", any_rank=True)],
        outputs=[common_pb2.TensorSpec(name="y", datatype="FP32", shape=[-1, 3])],
        batched=True,
    )
    profile = builders.a_profile()
    sent = wire.encode_profile(profile)
    assert (wire.decode_variant_key(sent.variant), sent.profile_class) == (profile.variant, profile.profile_class)
    assert (tuple(map(wire.decode_load_cost, sent.load)), tuple(map(wire.decode_latency_row, sent.rows))) == (profile.load, profile.rows)
    assert (sent.measured_unix_s, sent.quick) == (profile.measured_unix_s, profile.quick)
    (fit,), line = sent.fits, fit_of(profile, 1)
    assert line is not None
    assert (fit.threads, fit.concurrency, fit.line.slope_ms, fit.line.intercept_ms) == (1, 1, line.slope_ms, line.intercept_ms)
    assert fit.saturation_items_per_s == saturation_items_per_s(profile, 1)
    assert not wire.encode_profile(builders.a_profile(rows=(builders.a_latency_row(),))).fits[0].HasField("line")
    variant = builders.a_variant()
    info = wire.encode_variant_info(variant)
    assert wire.decode_variant_key(info.key) == variant.key
    assert (info.state, info.build_class, info.artifact_digest, info.graph_digest) == (
        variant.state.value, variant.build_class or "", variant.artifact or "", variant.graph or "",
    )  # fmt: skip
    for name in ("backend", "flavour", "precision", "max_batch", "tensor_bytes", "tensor_bytes_shared", "tensor_count", "reason"):
        assert getattr(info, name) == getattr(variant, name), name


Message = Any


def changed(message: Message, **fields: Any) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    for name, value in fields.items():
        if isinstance(value, list):
            del getattr(copy, name)[:]
            getattr(copy, name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(copy, name).CopyFrom(value)
        else:
            setattr(copy, name, value)
    return copy


KEY = wire.encode_variant_key(builders.a_variant_key())
ROW = wire.encode_latency_row(builders.a_latency_row())
COST = wire.encode_load_cost(builders.a_load_cost())
ENDPOINT = wire.encode_endpoint(wire.Endpoint("host-0", "/run/tessera/runtime-0/data.sock", "127.0.0.1:8021", RuntimeId("runtime-0")))


@pytest.mark.parametrize(
    ("decode", "message", "field"),
    [
        (wire.decode_variant_key, common_pb2.VariantKey(), "variant.trust_domain"),
        (wire.decode_variant_key, changed(KEY, model="Has Space"), "variant.model 'Has Space'"),
        (wire.decode_variant_key, changed(KEY, model="../../etc"), "variant.model"),
        (wire.decode_variant_key, changed(KEY, model="a" * 129), "at most 128 characters, got 129"),
        (wire.decode_variant_key, changed(KEY, version=0), "variant.version 0: must be from 1"),
        (wire.decode_variant_key, changed(KEY, version=2**32 - 1), "variant.version"),
        (wire.decode_variant_key, changed(KEY, variant="a/b"), "variant.variant 'a/b'"),
        (wire.decode_term, common_pb2.Term(), "term.revision 0"),
        (wire.decode_term, common_pb2.Term(revision=-5), "term.revision -5"),
        (wire.decode_stage_times, [common_pb2.StageTime(stage="cook", ms=1)], "stages[0].stage 'cook': must be one of queue"),
        (wire.decode_stage_times, [common_pb2.StageTime(stage="map", ms=-1)], "stages[0].ms -1.0"),
        (wire.decode_stage_times, [common_pb2.StageTime(stage="map", ms=float("nan"))], "stages[0].ms nan"),
        (wire.decode_stage_times, [common_pb2.StageTime(stage="map", ms=float("inf"))], "stages[0].ms inf"),
        (wire.decode_start_path, "magic", "start_path 'magic': must be one of warm, transform, bind, fork"),
        (wire.decode_generation, 0, "generation 0"),
        (wire.decode_endpoint, changed(ENDPOINT, runtime_id=""), "endpoint.runtime_id"),
        (wire.decode_endpoint, changed(ENDPOINT, relay_address="", unix_path=""), "endpoint: must have a relay_address"),
        (wire.decode_load_cost, changed(COST, start_path=""), "load.start_path"),
        (wire.decode_latency_row, changed(ROW, batch=0), "row.batch 0"),
        (wire.decode_latency_row, changed(ROW, threads=0), "row.threads 0"),
        (wire.decode_latency_row, changed(ROW, repeats=0), "row.repeats 0"),
        (wire.decode_latency_row, changed(ROW, p99_ms=float("nan")), "row.p99_ms"),
        (wire.decode_latency_row, changed(ROW, spread=float("nan")), "row.spread nan"),
        (wire.decode_latency_row, changed(ROW, spread=-0.5), "row.spread -0.5"),
    ],
)
def test_what_is_malformed_is_named(decode: Callable[[Any], Any], message: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(message)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ms": 0.0}, "transformation.ms 0.0: must be more than 0"),
        ({"ms": -1.0}, "transformation.ms"),
        ({"ms": float("nan")}, "transformation.ms"),
        (
            {"steps": [node_pb2.Transformation.StepSum(operator="melt", steps=1)]},
            r"steps\[0\].operator 'melt': must be one of reduce, replace",
        ),
        ({"steps": [node_pb2.Transformation.StepSum(operator="add")]}, r"transformation.steps\[0\].steps 0: must be at least 1"),
        ({"steps": [node_pb2.Transformation.StepSum(operator="add", steps=1)] * 1025}, "transformation.steps 1025: at most 1024"),
    ],
)
def test_a_transformation_that_cannot_be_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        wire.decode_observation(node_pb2.Transformation(**{"ms": 1.0, **changes}))


def test_costs_are_sent_with_every_line() -> None:
    record = builders.a_meta_cost_record()
    sent = wire.encode_meta_costs(record)
    assert (sent.profile_class, sent.dialect, sent.base_ms) == (record.profile_class, "aten", 1.5)
    assert (sent.error, sent.observations, sent.measured_unix_s) == (record.error, record.observations, record.measured_unix_s)
    assert [(line.operator, line.kind, line.fixed_ms, line.per_mib_ms) for line in sent.lines] == [
        ("add", "", 0.03, 0.0), ("add", "aten.linear.default", 0.05, 0.1),
    ]  # fmt: skip
