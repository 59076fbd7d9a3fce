"""The messages of a peer stream as bytes; nothing here reads or writes. Integers are little-endian.

    hello    client   "TPS", u8 version, u8 length + node id, u8 length + trust domain
    welcome  server   u8 verdict, u16 length + words (its node id, or why not)
    ask      client   u8 wish, 32 bytes digest, u64 offset
    answer   server   u8 finding, u64 size of the whole blob, u16 length + words; after HERE to SEND: its bytes from the offset on

A client may ask before it has read the welcome. Answers come in the order of the asks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest, NodeId, TrustDomain

VERSION = 1
MAGIC = b"TPS"
HELLO_HEAD = struct.Struct("<3sBB")
LENGTH_U8 = struct.Struct("<B")
WELCOME_HEAD = struct.Struct("<BH")
ASK = struct.Struct("<B32sQ")
ANSWER_HEAD = struct.Struct("<BQH")
MAX_WORDS_BYTES = 1024

_Code = TypeVar("_Code", bound=IntEnum)


class Verdict(IntEnum):
    WELCOME = 0
    BUSY = 1
    REFUSED = 2


class Wish(IntEnum):
    SEND = 1
    SIZE = 2


class Finding(IntEnum):
    HERE = 0
    NOT_HERE = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Ask:
    wish: Wish
    digest: Digest
    offset: int = 0


@dataclass(frozen=True, slots=True)
class AnswerHead:
    finding: Finding
    size_bytes: int
    words_bytes: int


def encode_hello(node_id: NodeId, trust_domain: TrustDomain) -> bytes:
    name, domain = node_id.encode(), trust_domain.encode()
    return HELLO_HEAD.pack(MAGIC, VERSION, len(name)) + name + LENGTH_U8.pack(len(domain)) + domain


def decode_hello_head(head: bytes) -> int:
    """The length of the node id that follows.

    Raises:
        InvalidInput: this is no peer stream, or one of another version.
    """
    magic, version, length = HELLO_HEAD.unpack(head)
    if magic != MAGIC:
        raise InvalidInput("hello", magic, f"a peer stream begins with {MAGIC!r}")
    if version != VERSION:
        raise InvalidInput("version", version, f"this node speaks version {VERSION} of the peer stream")
    return int(length)


def encode_welcome(verdict: Verdict, words: str) -> bytes:
    text = _words(words)
    return WELCOME_HEAD.pack(verdict, len(text)) + text


def decode_welcome_head(head: bytes) -> tuple[Verdict, int]:
    """The verdict and the length of the words. Raises: InvalidInput."""
    verdict, length = WELCOME_HEAD.unpack(head)
    return _one_of(Verdict, "verdict", verdict), _length(length)


def encode_ask(ask: Ask) -> bytes:
    return ASK.pack(ask.wish, bytes.fromhex(ask.digest), ask.offset)


def decode_ask(data: bytes) -> Ask:
    """Raises: InvalidInput."""
    wish, digest, offset = ASK.unpack(data)
    return Ask(_one_of(Wish, "wish", wish), Digest(digest.hex()), offset)


def encode_answer(finding: Finding, size_bytes: int = 0, words: str = "") -> bytes:
    text = _words(words)
    return ANSWER_HEAD.pack(finding, size_bytes, len(text)) + text


def decode_answer_head(head: bytes) -> AnswerHead:
    """Raises: InvalidInput."""
    finding, size_bytes, length = ANSWER_HEAD.unpack(head)
    return AnswerHead(_one_of(Finding, "finding", finding), size_bytes, _length(length))


def _words(words: str) -> bytes:
    return words.encode()[:MAX_WORDS_BYTES]


def _length(length: int) -> int:
    if length > MAX_WORDS_BYTES:
        raise InvalidInput("words", f"{length} bytes", f"at most {MAX_WORDS_BYTES}")
    return length


def _one_of(kind: type[_Code], field: str, value: int) -> _Code:
    try:
        return kind(value)
    except ValueError:
        raise InvalidInput(field, value, f"must be one of {', '.join(f'{code.value} ({code.name})' for code in kind)}") from None
