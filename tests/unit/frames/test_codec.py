from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput, WrongGeneration
from tessera.frames import codec
from tessera.frames.codec import FrameError, FrameResponse, Hello, RequestHeader
from tessera.frames.reader import FrameDecoder

FRAME = st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 2**32 - 1), st.binary(max_size=300))


@given(st.lists(FRAME, max_size=8), st.data())
def test_frames_survive_any_cut_of_the_stream(frames, data):
    stream = b"".join(codec.encode_frame(kind, number, payload, flags) for kind, flags, number, payload in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder, found = FrameDecoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += [(frame.type, frame.flags, frame.stream, bytes(frame.payload)) for frame in decoder.feed(stream[start:end])]
    assert found == frames


LARGE = st.tuples(
    st.integers(0, 5), st.integers(0, 1), st.integers(0, 99), st.integers(0, codec.MAX_PAYLOAD_BYTES).map(lambda size: b"ab" * (size // 2))
)


@settings(max_examples=60, deadline=None)  # a long frame byte by byte
@given(st.lists(LARGE | FRAME, max_size=6), st.lists(st.integers(1, 200_000), min_size=1, max_size=6))
def test_reader_gives_every_frame_however_the_kernel_cuts(frames, cuts):
    stream = memoryview(b"".join(codec.encode_frame(kind, number, payload, flags) for kind, flags, number, payload in frames))
    decoder, turn = FrameDecoder(), 0
    while stream:
        buffer = decoder.reader.buffer()
        assert len(buffer)
        count = min(len(buffer), len(stream), cuts[turn % len(cuts)])
        turn += 1
        buffer[:count] = stream[:count]
        stream = stream[count:]
        decoder.reader.advance(count)
    assert [(frame.type, frame.flags, frame.stream, bytes(frame.payload)) for frame in decoder.frames] == frames


def test_payloads_stay_valid_while_the_reader_goes_on():
    decoder = FrameDecoder()
    (first,) = decoder.feed(codec.encode_frame(codec.REQUEST, 1, b"x" * 100))
    for _ in range(1000):
        list(decoder.feed(codec.encode_frame(codec.REQUEST, 2, b"y" * 100)))
    assert bytes(first.payload) == b"x" * 100


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (struct.pack("<IBBHI", codec.MAX_PAYLOAD_BYTES + 1, 1, 0, 0, 1), f"at most {codec.MAX_PAYLOAD_BYTES}"),
        (struct.pack("<IBBHI", 0, 6, 0, 0, 1), "frame type 6"),
        (struct.pack("<IBBHI", 0, 1, 2, 0, 1), "flags"),
        (struct.pack("<IBBHI", 0, 1, 0, 7, 1), "reserved"),
    ],
)
def test_malformed_header_is_refused_with_the_limit(header, words):
    with pytest.raises(FrameError, match=words):
        list(FrameDecoder().feed(header))


@given(st.binary(max_size=64))
def test_decoder_never_fails_otherwise(data):
    try:
        list(FrameDecoder().feed(data))
    except FrameError:
        pass


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8))
def test_request_header_round_trip(generation, budget, trace_id, span_id):
    header = RequestHeader(generation, budget, trace_id, span_id, 1)
    head = codec.whole_request_head(7, header, 5)
    (frame,) = FrameDecoder().feed(head + b"hello")
    assert (frame.stream, frame.flags) == (7, codec.FLAG_LAST)
    assert codec.decode_request(frame.payload, 0, len(frame.payload)) == (header, 5)
    assert frame.payload[codec.REQUEST_HEADER_BYTES :] == b"hello"
    assert head == codec.frame_head(codec.REQUEST, 7, codec.REQUEST_HEADER_BYTES + 5, True) + codec.request_header(header, 5)


@pytest.mark.parametrize(("budget_us", "sent"), [(-5, 0), (2**64 + 5, 2**64 - 1)])
def test_a_budget_beyond_its_field_is_cut_to_it(budget_us, sent):
    header = RequestHeader(1, budget_us)
    for head in (codec.whole_request_head(1, header, 0)[codec.HEADER_BYTES :], codec.request_header(header, 0)):
        assert codec.decode_request(head, 0, len(head))[0].budget_us == sent


def test_response_header_round_trip():
    response = FrameResponse(0, 4, 10, 15, 20, b"body")
    (frame,) = FrameDecoder().feed(codec.whole_response_head(3, response, 4) + b"body")
    assert (frame.stream, frame.flags) == (3, codec.FLAG_LAST)
    assert codec.decode_response(frame.payload, 0, len(frame.payload)) == (0, 4, 10, 15, 20, 4)
    assert frame.payload[codec.RESPONSE_HEADER_BYTES :] == b"body"
    assert frame.payload.startswith(codec.response_header(response, 4))


def test_times_beyond_their_fields_are_cut_to_them():
    response = FrameResponse(0, 1, 2**40, 2**39, 2**41)
    for head in (codec.whole_response_head(3, response, 0)[codec.HEADER_BYTES :], codec.response_header(response, 0)):
        assert codec.decode_response(head, 0, len(head)) == (0, 1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 0)


def test_layout_is_the_one_that_the_contract_names():
    assert codec.REQUEST_HEADER_BYTES == 8 + 8 + 16 + 8 + 1 + 3 + 4
    assert codec.RESPONSE_HEADER_BYTES == 2 + 2 + 4 + 4 + 4 + 4
    assert codec.encode_hello(Hello("r1", 7, 9))[12:] == b"TSRA" + struct.pack("<HHIIH", 1, 0, 7, 9, 2) + b"r1"


def test_hello_of_another_version_is_refused_by_name():
    payload = b"TSRA" + struct.pack("<HHIIH", 2, 0, 1, 1, 0)
    with pytest.raises(FrameError, match=r"version 2.*speaks version 1"):
        codec.decode_hello(payload)


def test_peek_hello_waits_and_says_where_the_rest_begins():
    data = codec.encode_hello(Hello("runtime-7"))
    assert all(codec.peek_hello(data[:cut]) is None for cut in range(len(data)))
    found = codec.peek_hello(data + b"more")
    assert found is not None
    assert (found[0].target, found[1]) == ("runtime-7", len(data))
    with pytest.raises(FrameError, match="must be HELLO"):
        codec.peek_hello(codec.encode_credit(1))


def test_errors_come_back_as_their_class():
    error = FrameResponse.of_error(InvalidInput("inputs.shape", [1], "rank 4")).error()
    assert isinstance(error, InvalidInput)
    assert str(error) == "inputs.shape [1]: rank 4"
    wrong = FrameResponse.of_error(WrongGeneration("gone"))
    assert wrong.status == codec.Status.WRONG_GENERATION
    assert isinstance(wrong.error(), WrongGeneration)
    assert FrameResponse(0).error() is None
    assert codec.decode_error(b"").kind == "internal"
    assert codec.decode_error(b"\xff1").kind == "internal"
