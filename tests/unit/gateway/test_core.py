"""The small pure parts: parameters, reply suffix, admission, decisions, spans, ids, descriptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.open_inference import inference_pb2 as pb
from tessera.domain.errors import DeadlineExceeded, FailedPrecondition, Internal, InvalidInput, ResourceExhausted
from tessera.domain.instance import Stage, StageTime
from tessera.domain.signature import ANY_DATATYPE, DATATYPES, Signature, TensorSpec
from tessera.frames.openinference import encode_response
from tessera.gateway.adapters.identifiers import Identifiers
from tessera.gateway.app import read_token
from tessera.gateway.core.admission import FailedStart, StartForecast, after_failure, refusal
from tessera.gateway.core.decisions import Decision, DecisionLog
from tessera.gateway.core.requests import queue_budget_s, reply_prefix
from tessera.gateway.core.slots import slot_of
from tessera.gateway.core.spans import spans_of_decision
from tessera.gateway.server import descriptions
from tessera.testing.builders import an_instance


@pytest.mark.parametrize(("given_", "expected"), [({}, None), ({"a": "b"}, None), ({"timeout": 0}, None), ({"timeout": 250_000}, 0.25)])
def test_queue_budget(given_: dict[str, int | str], expected: float | None) -> None:
    assert queue_budget_s(dict(given_)) == expected


@pytest.mark.parametrize("value", [-1, True, 1.5, "1", None])
def test_a_timeout_that_is_no_number_of_microseconds(value: object) -> None:
    with pytest.raises(InvalidInput, match="timeout"):
        queue_budget_s({"timeout": value})  # type: ignore[dict-item] # what a client may send


def test_our_own_namespace_is_closed_and_tritons_is_open() -> None:
    with pytest.raises(InvalidInput, match="tessera_latency"):
        queue_budget_s({"tessera_latency": 3})
    assert queue_budget_s({"triton_enable_empty_final_response": True, "sequence_id": 4}) is None


def test_the_suffix_joins_the_replys_own_parameters() -> None:
    slot = slot_of(an_instance())
    body = encode_response("m", "1", "id", [], {"own": 3, "node": "from the runtime"})
    for _ in range(2):  # the second one comes from the remembered prefix
        answer = pb.ModelInferResponse.FromString(body + reply_prefix(slot, "fork") + b"ab" * 16)
        assert {name: value.string_param for name, value in answer.parameters.items() if name != "own"} == {
            "variant": slot.variant.variant,
            "node": slot.node_id,
            "start_path": "fork",
            "request_id": "ab" * 16,
        }
        assert answer.parameters["own"].int64_param == 3
        assert answer.id == "id"


NO_FORECAST = StartForecast(None, None)


def ask(waiting: int = 0, budget_s: float = 1.0, forecast: StartForecast = NO_FORECAST, running_for_s: float = 0.0) -> object:
    return refusal(variant="m@1/v", waiting=waiting, limit=4, budget_s=budget_s, forecast=forecast, running_for_s=running_for_s)


def test_admission() -> None:
    assert ask() is None
    assert ask(waiting=3) is None
    assert isinstance(ask(waiting=4), ResourceExhausted)
    slow = StartForecast(2.0, 0.1)
    assert isinstance(ask(forecast=slow), DeadlineExceeded)
    assert ask(forecast=slow, budget_s=2.2) is None
    assert ask(forecast=slow, running_for_s=1.5) is None
    assert isinstance(ask(forecast=slow, running_for_s=5.0, budget_s=0.05), DeadlineExceeded)


@given(st.integers(0, 10), st.floats(0, 100), st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
def test_a_longer_budget_or_a_start_further_along_is_never_refused_instead(
    waiting: int, load_s: float, latency_s: float, budget_s: float, running_s: float
) -> None:
    forecast = StartForecast(load_s, latency_s)
    if ask(waiting, budget_s, forecast, running_s) is None:
        assert ask(waiting, budget_s + 1, forecast, running_s) is None
        assert ask(waiting, budget_s, forecast, running_s + 1) is None


def test_pauses_double_up_to_half_a_minute() -> None:
    failed: FailedStart | None = None
    pauses = []
    for _ in range(10):
        failed = after_failure(failed, Internal("boom"), 100.0)
        pauses.append(failed.until_s - 100.0)
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == 30.0
    assert failed is not None
    error = failed.error(110.0)
    assert isinstance(error, Internal)
    assert "boom (failed 10 times; next try in 20.0 s)" in error.message


def decision(request_id: str = "a" * 32, **fields: object) -> Decision:
    made = Decision(bytes.fromhex(request_id), bytes.fromhex("00000000000000ff"), "00000000000000aa", True, 1000.0)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_the_log_forgets_the_oldest_but_not_a_younger_one_of_the_same_id() -> None:
    log = DecisionLog(3)
    first, second, third = decision("a" * 32), decision("b" * 32), decision("a" * 32)
    for one in (first, second, third):
        log.add(one)
    assert log.get("a" * 32) is third
    assert log.of_trace("a" * 32) == [first, third]
    log.add(decision("c" * 32))
    assert log.get("a" * 32) is third
    log.add(decision("d" * 32))
    assert log.get("b" * 32) is None
    assert len(log) == 3


def test_spans_of_a_start_are_nested_and_in_order() -> None:
    made = decision(
        model="m",
        outcome="ok",
        actual_ms=20.0,
        queued_ms=1.0,
        waited_ms=10.0,
        sent_ms=12.0,
        attempts=1,
        queue_us=500,
        run_us=3000,
        batch_size=2,
    )
    spans = {span.name: span for span in spans_of_decision(made)}
    assert list(spans) == [
        "tessera.gateway.infer",
        "tessera.gateway.queue",
        "tessera.gateway.forward",
        "tessera.runtime.queue",
        "tessera.runtime.run",
    ]
    infer, forward, run = spans["tessera.gateway.infer"], spans["tessera.gateway.forward"], spans["tessera.runtime.run"]
    assert (infer.span_id, infer.parent_span_id) == (made.span_id, made.parent_span_id)
    assert spans["tessera.gateway.queue"].parent_span_id == forward.parent_span_id == infer.span_id
    assert run.parent_span_id == forward.span_id
    assert run.end_unix_ns == infer.end_unix_ns == forward.end_unix_ns
    assert run.end_unix_ns - run.start_unix_ns == 3_000_000
    assert spans["tessera.runtime.queue"].end_unix_ns == run.start_unix_ns
    assert len({span.span_id for span in spans.values()}) == 5
    assert run.attributes["batch_size"] == "2"


def test_waiting_for_the_opening_is_a_span_before_the_queue() -> None:
    made = decision(outcome="ok", actual_ms=20.0, sent_ms=1.0, attempts=1, queue_us=500, opening_us=2000, run_us=3000)
    spans = {span.name: span for span in spans_of_decision(made)}
    load, queue = spans["tessera.runtime.load"], spans["tessera.runtime.queue"]
    assert (load.end_unix_ns - load.start_unix_ns, load.end_unix_ns) == (2_000_000, queue.start_unix_ns)
    assert load.parent_span_id == spans["tessera.gateway.forward"].span_id
    assert len({span.span_id for span in spans.values()}) == len(spans)


def test_spans_of_failures_and_unsampled_requests() -> None:
    (only,) = spans_of_decision(decision(outcome="not_found: model 'x'"))
    assert only.error == "not_found: model 'x'"
    unsampled = decision(outcome="ok")
    unsampled.sampled = False
    assert spans_of_decision(unsampled) == []


def test_stages_add_up() -> None:
    made = decision(stages=(StageTime(Stage.QUEUE, 1.0), StageTime(Stage.LOAD, 2.0)), queue_us=500, run_us=4000)
    assert [(stage.stage.value, stage.ms) for stage in made.all_stages()] == [("queue", 1.5), ("load", 2.0), ("run", 4.0)]
    assert [stage.stage for stage in decision(run_us=10).all_stages()] == [Stage.RUN]
    opened = decision(stages=made.stages, queue_us=500, opening_us=1000, run_us=4000)
    assert [(stage.stage.value, stage.ms) for stage in opened.all_stages()] == [("queue", 1.5), ("load", 3.0), ("run", 4.0)]
    reopened = decision(opening_us=1000, run_us=4000)
    assert [(stage.stage.value, stage.ms) for stage in reopened.all_stages()] == [("load", 1.0), ("run", 4.0)]


def test_identifiers_are_well_formed_and_differ() -> None:
    draw = Identifiers()
    drawn = [draw() for _ in range(1000)]
    assert all(len(trace) == 16 and len(span) == 8 and any(trace) and any(span) for trace, span in drawn)
    assert len({trace for trace, _ in drawn}) == 1000


def test_the_host_is_called_the_same_by_node_agents() -> None:
    from tessera.gateway import app as gateway
    from tessera.node_agent import parts as node_agent

    assert gateway.host_id() == node_agent.host_id()


def test_descriptions_of_batched_and_free_signatures() -> None:
    batched = Signature((TensorSpec("x", "FP32", (-1, 3, 8)),), (TensorSpec("y", "BYTES", (-1,)),))
    assert list(descriptions.metadata("m", [1, 2], batched).inputs[0].shape) == [-1, 3, 8]
    config = descriptions.config("m", batched, 16)
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (16, [3, 8], [])
    assert config.output[0].data_type == pb.TYPE_STRING
    assert config.HasField("dynamic_batching")
    free = Signature((TensorSpec("INPUT0", ANY_DATATYPE, (), any_rank=True),), (TensorSpec("OUTPUT0", ANY_DATATYPE, (), any_rank=True),))
    config = descriptions.config("identity", free, 8)
    assert (config.max_batch_size, list(config.input[0].dims), config.input[0].data_type) == (0, [-1], pb.TYPE_FP32)
    assert descriptions.metadata("identity", [1], free).inputs[0].datatype == "FP32"


def test_every_datatype_has_a_word_in_the_config() -> None:
    for datatype in DATATYPES:
        spec = (TensorSpec("x", datatype, (2,)),)
        assert descriptions.config("m", Signature(spec, spec, batched=False), 1).input[0].data_type != pb.TYPE_INVALID


def test_the_token_file_must_be_private(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "token"
    with pytest.raises(FailedPrecondition, match="token"):
        read_token(path)
    path.write_text("abc\n")
    path.chmod(0o644)
    with pytest.raises(FailedPrecondition, match="mode 0644: must be 0600"):
        read_token(path)
    assert read_token(path, shared=True) == "abc", "a secret in a container has no owner alone"
    path.chmod(0o600)
    assert read_token(path) == "abc"
    path.write_text(" \n")
    with pytest.raises(FailedPrecondition, match="empty"):
        read_token(path)
