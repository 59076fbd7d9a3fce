"""Structured logs on stderr: JSON lines, or a console for people where stderr is a terminal. One line per decision."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, Protocol, cast

import structlog
from structlog.typing import EventDict, Processor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Logger(Protocol):
    """What a service needs of a logger: an event in words, and fields by keyword."""

    def debug(self, event: str, **fields: Any) -> Any: ...
    def info(self, event: str, **fields: Any) -> Any: ...
    def warning(self, event: str, **fields: Any) -> Any: ...
    def error(self, event: str, **fields: Any) -> Any: ...
    def exception(self, event: str, **fields: Any) -> Any: ...
    def bind(self, **fields: Any) -> Logger: ...


class _StderrLogger:
    """Writes one whole line per call, to whatever stderr is at that moment (tests replace it)."""

    def msg(self, message: str) -> None:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    debug = info = warning = error = critical = exception = log = fatal = warn = msg


def get_logger(name: str) -> Logger:
    """A logger whose lines carry `logger=name`, the level, the time, and the trace id of the current span."""
    # "_logger", because structlog takes an argument "logger" for itself; `_rename` puts it right.
    return cast(Logger, structlog.get_logger(_logger=name))


def configure_logging(
    level: str, json_lines: bool | None, trace_id: Callable[[], str], service: str = "", *, standard_library: bool = True
) -> None:
    """Sets up structlog and, with `standard_library`, the root logger alike. `json_lines` None: JSON unless stderr is a terminal."""

    def add_trace_id(_logger: object, _method: str, event: EventDict) -> EventDict:
        if "trace_id" not in event and (current := trace_id()):
            event["trace_id"] = current
        return event

    def add_service(_logger: object, _method: str, event: EventDict) -> EventDict:
        if service:
            event.setdefault("service", service)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _rename,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        add_service,
        add_trace_id,
    ]
    as_json = not sys.stderr.isatty() if json_lines is None else json_lines
    render: list[Processor]
    if as_json:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        render = [structlog.dev.ConsoleRenderer()]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_arguments: _StderrLogger(),
        cache_logger_on_first_use=False,
    )
    if standard_library:
        _configure_root(level, shared, render)


def configure_default(trace_id: Callable[[], str]) -> None:
    """What holds before `configure`: warnings on stderr. An application that has set up structlog itself keeps its own."""
    if not structlog.is_configured():
        configure_logging("warning", None, trace_id, standard_library=False)


def _configure_root(level: str, shared: list[Processor], render: list[Processor]) -> None:
    handler = _CurrentStderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[_name_of_logger, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _CurrentStderrHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Third parties say little of use below "warning"; our own lines go through structlog.
    root.setLevel(max(LEVELS[level], logging.WARNING))


class _CurrentStderrHandler(logging.StreamHandler[Any]):
    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _rename(_logger: object, _method: str, event: EventDict) -> EventDict:
    if "_logger" in event:
        event["logger"] = event.pop("_logger")
    return event


def _name_of_logger(_logger: object, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event["logger"] = record.name
    return event
