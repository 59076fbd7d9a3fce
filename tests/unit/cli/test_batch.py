"""What `tessera batch` makes of its arguments, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.api.batch.v1 import batch_pb2
from tessera.api.common.v1 import common_pb2
from tessera.cli import views
from tessera.cli.commands.batch import _Line, _row, url
from tessera.domain.errors import InvalidInput
from tessera.sdk._requests import batch_request


def test_a_path_is_meant_here_and_a_url_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert url("in.npz") == f"{tmp_path}/in.npz"
    assert url("/srv/out/") == "/srv/out"
    assert url("~/in.npz") == "/home/me/in.npz"
    for given in ("s3://bucket/in.npz", "file:///srv/in.npz", "file:in.npz"):
        assert url(given) == given


def test_the_line_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    line = _Line()
    line.show(batch_pb2.BatchInfo(state="paused", rows=200, rows_done=50, rows_failed=2, reason="i1 is overloaded"))
    assert "paused [#######                       ] 50/200 rows, 2 failed (i1 is overloaded)" in capsys.readouterr().err
    line.show(batch_pb2.BatchInfo(state="running", rows_done=0))
    assert "0/? rows" in capsys.readouterr().err


def test_elsewhere_than_on_a_terminal_there_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = _Line()
    line.show(batch_pb2.BatchInfo(state="running"))
    line.end()
    assert capsys.readouterr().err == ""


def test_a_job_whose_end_was_asked_for_says_so_until_it_has_ended() -> None:
    assert _row(batch_pb2.BatchInfo(state="running", cancelling=True))["state"] == "cancelling"
    assert _row(batch_pb2.BatchInfo(state="cancelled", cancelling=True))["state"] == "cancelled"


def test_times_that_have_not_come_are_nothing() -> None:
    plain = views.batch(batch_pb2.BatchInfo(objectives=common_pb2.Objectives(latency_ms=5.0), started_unix_s=3.0))
    assert (plain["started_unix_s"], plain["ended_unix_s"], plain["objectives"]) == (3.0, None, {"latency_ms": 5.0})


def test_what_was_not_said_is_left_to_the_profiler() -> None:
    request = batch_request("lab", "digits", "a", "b", latency_ms=5.0, max_errors=0)
    assert (request.trust_domain, request.batch_size, request.HasField("max_errors"), request.max_errors) == ("lab", 0, True, 0)
    assert [field.name for field, _ in request.objectives.ListFields()] == ["latency_ms"]
    assert not batch_request("lab", "digits", "a", "b").HasField("max_errors")


@pytest.mark.parametrize("name", ["batch_size", "max_errors"])
@pytest.mark.parametrize("value", [-1, 1 << 32, 1.5])
def test_a_number_that_no_message_carries_is_named(name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=name):
        batch_request("lab", "digits", "a", "b", **{name: value})  # type: ignore[typeddict-item] # what is wrong is the point
