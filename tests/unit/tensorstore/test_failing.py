"""Faults that failpoints put into a store leave it sound."""

from __future__ import annotations

import pytest

from tessera.domain.errors import Unavailable
from tessera.failpoint import active
from tessera.tensorstore.decorators.failing import FailingTensorStore
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing.blobs import blob_of, put


@pytest.mark.parametrize("point", ["ingest", "write", "commit"])
def test_a_fault_on_the_way_in_leaves_nothing_and_the_next_try_succeeds(store: LocalTensorStore, point: str) -> None:
    failing = FailingTensorStore(store)
    with active(f"tensorstore.{point}=1*error(unavailable: lost)"):
        with pytest.raises(Unavailable, match="lost"):
            put(failing, blob_of(1, 100), "runtime-1")
        assert store.check(deep=True) == []
        assert store.status().used_bytes == 0
        assert store.holders() == {}
        put(failing, blob_of(1, 100), "runtime-1")


@pytest.mark.parametrize(
    "point", ["has", "path", "pin", "unpin", "verify", "quarantine", "make_room", "holders", "status", "digests", "sweep"]
)
def test_every_call_has_its_point(store: LocalTensorStore, point: str) -> None:
    digest = put(store, blob_of(1, 100))
    arguments = {"pin": ("a", [digest]), "unpin": ("a", None), "make_room": (1000,)}
    given = arguments.get(point, (digest,) if point in ("has", "path", "verify", "quarantine") else ())
    call = getattr(FailingTensorStore(store), point)
    with active(f"tensorstore.{point}=error(unavailable: lost)"), pytest.raises(Unavailable, match="lost"):
        call(*given)
    assert store.has(digest)
    assert store.holders() == {}
    call(*given)
