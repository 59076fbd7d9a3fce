"""What is sent comes back equal; what is malformed is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera import wire
from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Generation, NodeId, RuntimeId, Term, TrustDomain, VariantKey, VariantName, VersionNumber
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import LatencyRow, LoadCost, ProfileRecord, VariantRecord, VariantState
from tessera.domain.signature import DATATYPES, Signature, TensorSpec
from tessera.testing import builders

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,40}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
sizes = st.integers(0, 2**64 - 1)
times = st.floats(0, 1e12)
small = st.integers(1, 2**32 - 1)
keys = st.builds(VariantKey, names.map(TrustDomain), names, st.integers(1, 999_999_999).map(VersionNumber), names.map(VariantName))
dimensions = st.integers(-1, 2**53)
stages = st.lists(st.builds(StageTime, st.sampled_from(Stage), times), max_size=8).map(tuple)


@st.composite
def tensor_specs(draw: st.DrawFn, batched: bool) -> TensorSpec:
    any_rank = draw(st.booleans())
    shape = () if any_rank else tuple(draw(st.lists(dimensions, min_size=int(batched), max_size=6)))
    return TensorSpec(draw(st.text(min_size=1, max_size=20)), draw(st.sampled_from([*DATATYPES, "ANY"])), shape, any_rank)


@st.composite
def signatures(draw: st.DrawFn) -> Signature:
    batched = draw(st.booleans())

    def specs(smallest: int) -> tuple[TensorSpec, ...]:
        return tuple(draw(st.lists(tensor_specs(batched), min_size=smallest, max_size=4, unique_by=lambda spec: spec.name)))

    return Signature(specs(0), specs(1), batched)


load_costs = st.builds(LoadCost, st.sampled_from(StartPath), stages, sizes)
rows = st.builds(LatencyRow, small, small, small, times, times, times, sizes)
profiles = st.builds(
    ProfileRecord, keys, names, st.lists(load_costs, max_size=3).map(tuple), st.lists(rows, max_size=3).map(tuple), times, st.booleans()
)
variants = st.builds(
    VariantRecord,
    key=keys,
    backend=names,
    flavour=names,
    precision=names,
    state=st.sampled_from(VariantState),
    max_batch=small,
    build_class=st.none() | names,
    artifact=st.none() | digests,
    graph=st.none() | digests,
    tensor_bytes=sizes,
    tensor_bytes_shared=sizes,
    tensor_count=st.integers(0, 2**32 - 1),
    reason=st.text(max_size=50),
)
endpoints = st.builds(wire.Endpoint, names, names, names, names.map(RuntimeId))
instances = st.builds(
    replace,
    st.just(builders.an_instance()),
    variant=keys,
    generation=st.integers(1, 2**64 - 1).map(Generation),
    state=st.sampled_from(InstanceState),
    start_path=st.sampled_from(StartPath),
    fetched=st.booleans(),
    max_batch=small,
    stages=stages,
)


@given(st.data())
def test_what_is_sent_comes_back_equal(data: st.DataObject) -> None:
    pairs: list[tuple[st.SearchStrategy[Any], Callable[[Any], Any], Callable[[Any], Any]]] = [
        (keys, wire.encode_variant_key, wire.decode_variant_key),
        (signatures(), wire.encode_signature, wire.decode_signature),
        (st.builds(Term, sizes, st.integers(1, 2**63 - 1)), wire.encode_term, wire.decode_term),
        (load_costs, wire.encode_load_cost, wire.decode_load_cost),
        (rows, wire.encode_latency_row, wire.decode_latency_row),
        (profiles, wire.encode_profile, wire.decode_profile),
        (variants, wire.encode_variant_info, wire.decode_variant_info),
        (endpoints, wire.encode_endpoint, wire.decode_endpoint),
        (instances, wire.encode_instance, lambda message: wire.decode_instance(message, NodeId("node-0"))),
    ]
    for records, encode, decode in pairs:
        record = data.draw(records)
        message = encode(record)
        assert decode(type(message).FromString(message.SerializeToString())) == record


def test_an_endpoint_of_an_instance() -> None:
    endpoint = wire.decode_endpoint(wire.encode_endpoint(builders.an_instance()))
    assert endpoint == wire.Endpoint("host-0", "/run/tessera/runtime-0/data.sock", "127.0.0.1:8021", RuntimeId("runtime-0"))


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
SPEC = wire.encode_tensor_spec(TensorSpec("x", "FP32", (-1, 3)))
SIGNATURE = wire.encode_signature(builders.a_signature())
ROW = wire.encode_latency_row(builders.a_latency_row())
COST = wire.encode_load_cost(builders.a_load_cost())
PROFILE = wire.encode_profile(builders.a_profile())
VARIANT = wire.encode_variant_info(builders.a_variant())
INSTANCE = wire.encode_instance(builders.an_instance())
ENDPOINT = wire.encode_endpoint(builders.an_instance())


def decode_instance(message: Message) -> Any:
    return wire.decode_instance(message, NodeId("node-0"))


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
        (wire.decode_tensor_spec, changed(SPEC, name=""), "tensor.name"),
        (wire.decode_tensor_spec, changed(SPEC, name="x" * 2000), "tensor.name"),
        (wire.decode_tensor_spec, changed(SPEC, datatype="FLOAT"), "tensor.datatype 'FLOAT': must be one of BOOL"),
        (wire.decode_tensor_spec, changed(SPEC, shape=[-2]), "tensor.shape[0] -2"),
        (wire.decode_tensor_spec, changed(SPEC, shape=[1, 2**60]), "tensor.shape[1]"),
        (wire.decode_tensor_spec, changed(SPEC, shape=[1] * 33), "tensor.shape 33: at most 32"),
        (wire.decode_tensor_spec, changed(SPEC, any_rank=True), "tensor.shape"),
        (wire.decode_signature, common_pb2.Signature(), "signature.outputs"),
        (wire.decode_signature, changed(SIGNATURE, inputs=[SPEC, SPEC]), "signature.inputs[1].name 'x': stands twice"),
        (wire.decode_signature, changed(SIGNATURE, outputs=[SPEC, changed(SPEC, datatype="?")]), "signature.outputs[1].datatype"),
        (wire.decode_signature, changed(SIGNATURE, inputs=[changed(SPEC, shape=[])]), "signature.inputs[0].shape"),
        (wire.decode_signature, changed(SIGNATURE, inputs=[changed(SPEC, name=str(n)) for n in range(1025)]), "at most 1024"),
        (wire.decode_term, common_pb2.Term(), "term.revision 0"),
        (wire.decode_term, common_pb2.Term(revision=-5), "term.revision -5"),
        (wire.decode_stage_times, [common_pb2.StageTime(stage="cook", ms=1)], "stages[0].stage 'cook': must be one of queue"),
        (wire.decode_stage_times, [common_pb2.StageTime(stage="map", ms=-1)], "stages[0].ms -1.0"),
        (wire.decode_stage_times, [common_pb2.StageTime(stage="map", ms=float("nan"))], "stages[0].ms nan"),
        (wire.decode_stage_times, [common_pb2.StageTime(stage="map", ms=float("inf"))], "stages[0].ms inf"),
        (wire.decode_start_path, "magic", "start_path 'magic': must be one of warm, bind, fork"),
        (wire.decode_generation, 0, "generation 0"),
        (wire.decode_endpoint, changed(ENDPOINT, runtime_id=""), "endpoint.runtime_id"),
        (wire.decode_endpoint, changed(ENDPOINT, relay_address="", unix_path=""), "endpoint: must have a relay_address"),
        (wire.decode_load_cost, changed(COST, start_path=""), "load.start_path"),
        (wire.decode_latency_row, changed(ROW, batch=0), "row.batch 0"),
        (wire.decode_latency_row, changed(ROW, threads=0), "row.threads 0"),
        (wire.decode_latency_row, changed(ROW, repeats=0), "row.repeats 0"),
        (wire.decode_latency_row, changed(ROW, p99_ms=float("nan")), "row.p99_ms"),
        (wire.decode_profile, changed(PROFILE, profile_class=""), "profile.profile_class"),
        (wire.decode_profile, changed(PROFILE, measured_unix_s=float("inf")), "profile.measured_unix_s"),
        (wire.decode_profile, changed(PROFILE, rows=[ROW, changed(ROW, batch=0)]), "profile.rows[1].batch"),
        (wire.decode_profile, changed(PROFILE, load=[changed(COST, start_path="x")]), "profile.load[0].start_path"),
        (wire.decode_variant_info, changed(VARIANT, key=changed(KEY, version=0)), "variant_info.key.version"),
        (wire.decode_variant_info, changed(VARIANT, backend=""), "variant_info.backend"),
        (wire.decode_variant_info, changed(VARIANT, flavour=""), "variant_info.flavour"),
        (wire.decode_variant_info, changed(VARIANT, state="cooking"), "variant_info.state 'cooking': must be one of pending"),
        (wire.decode_variant_info, changed(VARIANT, max_batch=0), "variant_info.max_batch 0"),
        (wire.decode_variant_info, changed(VARIANT, artifact_digest="abc"), "variant_info.artifact_digest 'abc'"),
        (wire.decode_variant_info, changed(VARIANT, graph_digest="A" * 64), "variant_info.graph_digest"),
        (decode_instance, node_pb2.Instance(), "instance.instance_id"),
        (decode_instance, changed(INSTANCE, state="asleep"), "instance.state 'asleep'"),
        (decode_instance, changed(INSTANCE, generation=0), "instance.generation 0"),
        (decode_instance, changed(INSTANCE, variant=changed(KEY, model="")), "instance.variant.model"),
        (decode_instance, changed(INSTANCE, start_path="?"), "instance.start_path"),
    ],
)
def test_what_is_malformed_is_named(decode: Callable[[Any], Any], message: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(message)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 500
