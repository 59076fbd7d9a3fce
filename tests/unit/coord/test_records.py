from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.coord.records import decode, encode
from tessera.domain import records
from tessera.domain.errors import DataCorrupted
from tessera.domain.ids import ModelName, Term
from tessera.domain.records import (
    AliasRecord,
    AssignmentRecord,
    BatchRecord,
    InstanceRecord,
    JobRecord,
    LoadRecord,
    MetaCostRecord,
    ModelRecord,
    NodeRecord,
    ProfileRecord,
    ServiceRecord,
    VariantRecord,
    VersionRecord,
)

RECORDS = [
    AliasRecord,
    AssignmentRecord,
    BatchRecord,
    InstanceRecord,
    JobRecord,
    LoadRecord,
    MetaCostRecord,
    ModelRecord,
    NodeRecord,
    ProfileRecord,
    ServiceRecord,
    VariantRecord,
    VersionRecord,
]


def test_every_record_of_the_domain_is_tested_here() -> None:
    named = {value for name, value in vars(records).items() if name.endswith("Record")}
    assert named == set(RECORDS)


def of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Values of a record type that JSON can hold: whole numbers of 64 bits, finite floats, text without surrogates."""
    return st.from_type(kind).filter(_holds)


def _holds(value: Any) -> bool:
    match value:
        case None | bool():
            return True
        case int():
            return -(2**63) <= value < 2**64
        case float():
            return math.isfinite(value)
        case str():
            return not any("\ud800" <= character <= "\udfff" for character in value)
        case tuple():
            return all(map(_holds, value))
        case dict():
            return all(_holds(item) for pair in value.items() for item in pair)
    return all(_holds(getattr(value, name)) for name in value.__dataclass_fields__)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_a_record_comes_back_as_it_went_in(kind: type[Any]) -> None:
    @given(of(kind))
    def check(record: Any) -> None:
        data = encode(record)
        assert decode(kind, data) == record
        assert encode(decode(kind, data)) == data

    check()


@given(st.integers(0, 2**64 - 1))
def test_a_generation_keeps_its_64_bits(number: int) -> None:
    term = Term(number, number)
    assert decode(Term, encode(term)) == term


def test_keys_of_a_record_are_in_one_order() -> None:
    first = ServiceRecord("gateway", "g", "a:1", {"b": "1", "a": "2"})
    second = ServiceRecord("gateway", "g", "a:1", {"a": "2", "b": "1"})
    assert encode(first) == encode(second)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"alias": "a"}', b'{"alias": 1, "trust_domain": "d", "model": "m", "version": null}', b"\xff"],
)
def test_what_is_no_record_names_the_type(data: bytes) -> None:
    with pytest.raises(DataCorrupted, match="AliasRecord"):
        decode(AliasRecord, data)


def test_a_field_of_a_later_version_is_passed_over() -> None:
    data = b'{"alias": "a", "trust_domain": "d", "model": "m", "version": null, "later": 1}'
    assert decode(AliasRecord, data).alias == ModelName("a")
