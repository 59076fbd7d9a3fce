"""Log lines: JSON, one per decision, with the trace id; the standard library's too."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import pytest

from tessera import telemetry
from tessera.telemetry import TraceContext

TRACE = "0af7651916cd43dd8448eb211c80319c"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_json_with_name_service_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.get_logger("tessera.registry.jobs").info("job done", job="j1", bytes=3, path=object)
    (line,) = lines(capsys)
    assert line["event"] == "job done"
    assert (line["logger"], line["service"], line["level"]) == ("tessera.registry.jobs", "registry", "info")
    assert (line["job"], line["bytes"]) == ("j1", 3)
    assert line["time"].endswith("Z")
    assert "trace_id" not in line


def test_the_trace_id_is_bound_in_a_span(capsys: pytest.CaptureFixture[str]) -> None:
    log = telemetry.get_logger("x").bind(model="digits")
    with telemetry.span("s", parent=TraceContext(TRACE)):
        log.warning("decided")
        log.info("named", trace_id="given")
    first, second = lines(capsys)
    assert (first["trace_id"], first["model"]) == (TRACE, "digits")
    assert second["trace_id"] == "given"


def test_a_logger_made_before_follows_a_later_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    log = telemetry.get_logger("x")
    log.debug("not shown")
    telemetry.configure("scheduler", log_level="debug", json_logs=True)
    log.debug("shown")
    assert [(line["event"], line["service"]) for line in lines(capsys)] == [("shown", "scheduler")]


def test_an_exception_is_one_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        telemetry.get_logger("x").exception("it failed")
    (line,) = lines(capsys)
    assert "ValueError: bad" in line["exception"]
    assert line["level"] == "error"


def test_the_standard_librarys_lines_look_alike(capsys: pytest.CaptureFixture[str]) -> None:
    with telemetry.span("s", parent=TraceContext(TRACE)):
        logging.getLogger("third.party").warning("odd: %s", 7)
    logging.getLogger("third.party").info("chatter")
    telemetry.configure("registry", json_logs=True)
    logging.getLogger("third.party").error("again")
    first, second = lines(capsys)
    assert (first["event"], first["logger"], first["level"], first["trace_id"]) == ("odd: 7", "third.party", "warning", TRACE)
    assert second["event"] == "again"


def test_a_terminal_gets_words_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    telemetry.configure("registry")
    telemetry.get_logger("x").info("hello", model="digits")
    text = terminal.getvalue()
    assert "hello" in text
    assert "digits" in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
