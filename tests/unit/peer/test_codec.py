"""The messages of a peer stream: what is written is read, what is not valid is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest, NodeId, TrustDomain
from tessera.peer import codec
from tessera.peer.codec import AnswerHead, Ask, Finding, Verdict, Wish

DIGEST = Digest("ab" * 32)


def test_a_hello_says_who_asks_and_for_whom() -> None:
    data = codec.encode_hello(NodeId("node-1"), TrustDomain("lab"))
    size = codec.HELLO_HEAD.size
    length = codec.decode_hello_head(data[:size])
    assert data[size : size + length] == b"node-1"
    assert data[size + length :] == b"\x03lab"


@pytest.mark.parametrize(("head", "named"), [(b"GET\x01\x04", "hello"), (b"TPS\x02\x04", "version 2")])
def test_what_is_no_hello_of_ours_is_refused(head: bytes, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        codec.decode_hello_head(head)


@given(st.sampled_from(Wish), st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1))
def test_an_ask_comes_back_as_it_was(wish: Wish, digest: bytes, offset: int) -> None:
    ask = Ask(wish, Digest(digest.hex()), offset)
    data = codec.encode_ask(ask)
    assert len(data) == codec.ASK.size
    assert codec.decode_ask(data) == ask


@given(st.sampled_from(Finding), st.integers(0, 2**64 - 1), st.text(max_size=2000))
def test_an_answer_comes_back_as_it_was_its_words_cut_to_the_limit(finding: Finding, size_bytes: int, words: str) -> None:
    data = codec.encode_answer(finding, size_bytes, words)
    head = codec.decode_answer_head(data[: codec.ANSWER_HEAD.size])
    text = data[codec.ANSWER_HEAD.size :]
    assert head == AnswerHead(finding, size_bytes, len(text))
    assert len(text) <= codec.MAX_WORDS_BYTES
    assert words.encode().startswith(text)


def test_a_welcome_comes_back_as_it_was() -> None:
    data = codec.encode_welcome(Verdict.BUSY, "16 connections are open")
    assert codec.decode_welcome_head(data[: codec.WELCOME_HEAD.size]) == (Verdict.BUSY, 23)
    assert data[codec.WELCOME_HEAD.size :] == b"16 connections are open"


def test_values_that_nobody_knows_are_named_with_those_that_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"wish 9: must be one of 1 \(SEND\), 2 \(SIZE\)"):
        codec.decode_ask(codec.ASK.pack(9, bytes.fromhex(DIGEST), 0))
    with pytest.raises(InvalidInput, match="finding 7"):
        codec.decode_answer_head(codec.ANSWER_HEAD.pack(7, 0, 0))
    with pytest.raises(InvalidInput, match="words '1025 bytes': at most 1024"):
        codec.decode_answer_head(codec.ANSWER_HEAD.pack(0, 0, 1025))
    with pytest.raises(InvalidInput, match="verdict 3"):
        codec.decode_welcome_head(codec.WELCOME_HEAD.pack(3, 0))
