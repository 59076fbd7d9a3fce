"""W3C trace context, as text."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.telemetry import TraceContext, format_traceparent, new_span_id, new_trace_id, parse_traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"

hex_digits = st.sampled_from("0123456789abcdef")


def hex_text(length: int) -> st.SearchStrategy[str]:
    return st.text(hex_digits, min_size=length, max_size=length).filter(lambda text: set(text) != {"0"})


@given(trace_id=hex_text(32), span_id=hex_text(16), sampled=st.booleans())
def test_what_is_written_is_read(trace_id: str, span_id: str, sampled: bool) -> None:
    context = TraceContext(trace_id, span_id, sampled)
    assert parse_traceparent(format_traceparent(context)) == context


@given(st.text(string.printable, max_size=80))
def test_no_text_breaks_the_reader(text: str) -> None:
    found = parse_traceparent(text)
    assert found is None or text.strip().startswith(tuple("0123456789abcdef"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", TraceContext(TRACE, SPAN, True)),
        (f" 00-{TRACE}-{SPAN}-01 ", TraceContext(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-is-new", TraceContext(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01.what", None),
        (f"00-{TRACE}-{SPAN}-01-what-is-new", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
    ],
)
def test_the_standards_cases(text: str, expected: TraceContext | None) -> None:
    assert parse_traceparent(text) == expected


def test_a_root_gets_a_span_id_of_its_own() -> None:
    found = parse_traceparent(format_traceparent(TraceContext(TRACE)))
    assert found is not None
    assert found.trace_id == TRACE
    assert len(found.span_id) == 16


def test_ids_are_random_and_well_formed() -> None:
    traces = {new_trace_id() for _ in range(1000)}
    spans = {new_span_id() for _ in range(1000)}
    assert len(traces) == len(spans) == 1000
    assert all(len(trace_id) == 32 and int(trace_id, 16) for trace_id in traces)
    assert all(len(span_id) == 16 and int(span_id, 16) for span_id in spans)
