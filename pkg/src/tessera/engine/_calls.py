"""Calls to a container engine, off the event loop. The client blocks, so every call runs in a thread of its own pool; one client serves
one call at a time. Needs the extra `engine`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, LifoQueue
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from tessera.domain.errors import FailedPrecondition, Internal, TesseraError, Unavailable

CALL_S = 30.0
THREADS = 4

_Answer = TypeVar("_Answer")


class EngineCalls:
    """`url` as Docker clients take it, e.g. unix:///var/run/docker.sock. Nothing is asked before the first call."""

    def __init__(self, url: str, make: Callable[[str], Any] | None = None) -> None:
        """`make` gives tests their own client."""
        self.url = url
        self._make = make or _client
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="engine")
        self._idle: LifoQueue[Any] = LifoQueue()
        self._closed = False

    async def call(self, what: str, act: Callable[[Any], _Answer]) -> _Answer:
        """What `act` makes of a client. `what` completes "refuses to".

        Raises:
            Unavailable: no engine answers, it failed, or this was closed.
            FailedPrecondition: it refuses; in its own words.
            TesseraError: what `act` raises.
        """
        if self._closed:
            raise Unavailable(f"container engine {self.url} was let go ({what})")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._with_client, what, act)

    async def close(self) -> None:
        """Calls from here on are `Unavailable`."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return

    def _with_client(self, what: str, act: Callable[[Any], _Answer]) -> _Answer:
        client = None
        try:
            try:
                client = self._idle.get_nowait()
            except Empty:
                client = self._make(self.url)
            answer = act(client)
        except TesseraError:
            self._idle.put(client)
            raise
        except APIError as error:
            self._idle.put(client)
            raise _refusal(self.url, what, error) from error
        except (requests.exceptions.RequestException, DockerException, OSError) as error:
            if client is not None:
                client.close()  # its connections are of no use after an engine's restart
            raise Unavailable(f"container engine {self.url} does not answer ({what}): {_cause(error)}") from error
        self._idle.put(client)
        return answer


def _client(url: str) -> Any:
    return docker.APIClient(base_url=url, version="auto", timeout=CALL_S)


def _refusal(url: str, what: str, error: APIError) -> TesseraError:
    words = f"container engine {url} refuses to {what}: {error.explanation or error}"
    if error.status_code is not None and error.status_code >= 500:
        return Unavailable(words)
    return FailedPrecondition(words) if error.status_code in (400, 403, 404, 409) else Internal(words)


def _cause(error: BaseException) -> str:
    """The innermost reason: the outer ones repeat it in brackets."""
    inner = error
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    words = getattr(inner, "strerror", None)
    return str(words or inner or type(inner).__name__)


def remove_container(client: Any, container_id: str) -> None:
    """With its anonymous volumes; killed when it runs. Nothing happens when it is gone, or going. Raises: APIError."""
    try:
        client.remove_container(container_id, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # somebody else is removing it
            raise
