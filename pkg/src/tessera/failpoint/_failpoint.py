"""Parsing of terms and what a hit does (the grammar stands in the package's docstring)."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tessera.clock import SystemClock
from tessera.domain.errors import InvalidInput, TesseraError, error_of

ENVIRONMENT = "TESSERA_FAILPOINTS"
KILLED_EXIT_CODE = 137

_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
_TERM = re.compile(r"(?:(\d+)\*)?([a-z]+)(?:\((.*)\))?", re.DOTALL)
_KIND = re.compile(r"([a-z_]+):\s*(.*)", re.DOTALL)
_CLOCK = SystemClock()


@dataclass(slots=True)
class _Term:
    action: str
    argument: str
    left: int | None
    """How often it still happens; None: for ever."""


class _Point:
    def __init__(self, terms: list[_Term]) -> None:
        self.terms = terms
        self.hits = 0

    def next(self) -> _Term | None:
        self.hits += 1
        while self.terms:
            term = self.terms[0]
            if term.left is None:
                return term
            if term.left > 0:
                term.left -= 1
                return term
            self.terms.pop(0)
        return None


_points: dict[str, _Point] = {}
_any = False
_lock = threading.Lock()


def hit(name: str) -> None:
    """Does what the point's current term says; a delay blocks the thread. Nothing when the point is not set.

    Raises:
        TesseraError: for `error`. OSError: for `oserror`.
    """
    if not _any:
        return
    term = _next(name)
    if term is not None and term.action == "delay":
        time.sleep(float(term.argument))
    elif term is not None:
        _act(name, term)


async def async_hit(name: str) -> None:
    """As `hit`, but a delay lets the event loop go on."""
    if not _any:
        return
    term = _next(name)
    if term is not None and term.action == "delay":
        await _CLOCK.sleep(float(term.argument))
    elif term is not None:
        _act(name, term)


def configure(text: str) -> None:
    """Sets the points of `text` and no others; "" sets none.

    Raises:
        InvalidInput: names what cannot be read.
    """
    global _points, _any
    points = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, separator, terms = part.partition("=")
        if not separator or not _NAME.fullmatch(name.strip()):
            raise InvalidInput("failpoint", part, "must be name=terms")
        points[name.strip()] = _Point([_parse(term.strip()) for term in terms.split("->")])
    with _lock:
        _points, _any = points, bool(points)


def clear() -> None:
    """Unsets every point."""
    configure("")


def count(name: str) -> int:
    """How often a set point was hit; 0 when it is not set."""
    with _lock:
        point = _points.get(name)
        return point.hits if point else 0


@contextmanager
def active(text: str) -> Iterator[None]:
    """The points of `text` within the block; those set before come back after it."""
    global _points, _any
    before, was_any = _points, _any
    configure(text)
    try:
        yield
    finally:
        with _lock:
            _points, _any = before, was_any


def _next(name: str) -> _Term | None:
    with _lock:
        point = _points.get(name)
        return point.next() if point else None


def _act(name: str, term: _Term) -> None:
    if term.action == "kill":
        os._exit(KILLED_EXIT_CODE)
    if term.action == "oserror":
        number = _errno(term.argument)
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
    if term.action == "error":
        raise _error(term.argument or f"failpoint {name}")


def _error(argument: str) -> TesseraError:
    match = _KIND.fullmatch(argument)
    return error_of(match[1], match[2]) if match else error_of("internal", argument)


def _errno(argument: str) -> int:
    if argument.isdigit():
        return int(argument)
    number = getattr(errno, argument, None)
    if not isinstance(number, int):
        raise InvalidInput("failpoint", f"oserror({argument})", "must hold an error number or a name such as ENOSPC")
    return number


def _parse(text: str) -> _Term:
    match = _TERM.fullmatch(text)
    if match is None:
        raise InvalidInput("failpoint term", text, "must be [count*]action[(argument)]")
    number, action, argument = match.groups()
    if action not in {"off", "error", "oserror", "delay", "kill"}:
        raise InvalidInput("failpoint action", action, "must be off, error, oserror, delay or kill")
    if action == "delay":
        try:
            seconds = float(argument or "")
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < 86_400:
            raise InvalidInput("failpoint term", text, "delay takes seconds from 0 to 86400, as in delay(0.5)")
    if action == "oserror":
        _errno(argument or "")
    if action in {"off", "kill"} and argument:
        raise InvalidInput("failpoint term", text, f"{action} takes no argument")
    return _Term(action, argument or "", int(number) if number else None)


configure(os.environ.get(ENVIRONMENT, ""))
