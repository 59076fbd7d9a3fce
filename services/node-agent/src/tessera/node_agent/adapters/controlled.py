"""A live runtime as its control socket shows it, whatever made it. How it is killed, and what is left of it, its makers say."""

from __future__ import annotations

import asyncio
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition, InvalidInput, TesseraError, Unavailable
from tessera.domain.ids import (
    Digest,
    Generation,
    InstanceId,
    RuntimeId,
    TrustDomain,
    VariantKey,
    checked_digest,
    parse_reference,
)
from tessera.domain.instance import Stage, StageTime
from tessera.node_agent.adapters.control import ControlClient
from tessera.node_agent.adapters.processes import Watched, lower_priority, mapping_count, watch_listener
from tessera.node_agent.core.fsck import Declaration
from tessera.node_agent.core.slices import Slice
from tessera.node_agent.ports import Becoming, HeldInstance, Hello, InstanceActivity, LoadReport, RuntimeActivity
from tessera.runtime.control import Message, generation_field, generation_text, text_field, whole_field
from tessera.telemetry import get_logger

CONNECT_S = 2.0
ADOPT_S = 5.0
"""A runtime that lives from before has said its first word by then. One that says that it loads has as long as a load may take from then on
(`load_timeout_s`): whoever asked for that load is gone, and it was asked before."""
CALL_S = 10.0
SOCKET_POLL_S = 0.002
END_MARGIN_S = 5.0

ENVIRONMENTS = {"ort": {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=2000"}}
"""By flavour. A session is ten thousands of small pieces of heap, freed by the thread that will open the next one: with a cache of its own
that holds as many the thread opens it a sixth faster (the C library's default is 7 of each size). Read when a process starts, not later.
Not under torch, whose threads would keep tens of MiB that way."""

Answer = TypeVar("Answer")

_log = get_logger(__name__)

NONSENSE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What reading an answer raises that is not as it should be: a runtime may have been taken over, and say anything."""


class UnseenProcess(FailedPrecondition):
    """This agent cannot see the processes of its runtimes: no fault of theirs."""


def hello_of(answer: Message, pid: int) -> Hello:
    """A runtime's `hello` answer as a value. `pid`: as it is seen from here.

    Raises:
        InvalidInput: something is missing or not what it should be.
    """
    try:
        return Hello(
            RuntimeId(text_field(answer, "runtime_id")),
            pid,
            text_field(answer, "flavour"),
            whole_field(answer, "threads", 0),
            frozenset(checked_digest("holds", digest) for digest in answer.get("holds", ())),
            tuple(map(_held_instance, answer.get("instances", ()))),
        )
    except NONSENSE as error:
        raise InvalidInput("hello", None, f"{type(error).__name__}: {error}") from error


def _held_instance(item: Message) -> HeldInstance:
    artifact, variant = item.get("artifact"), text_field(item, "variant")
    parse_reference(variant)
    return HeldInstance(
        InstanceId(text_field(item, "instance_id")),
        generation_field(item),
        checked_digest("artifact", artifact) if artifact else None,
        variant,
    )


def activity_of(answer: Message) -> RuntimeActivity:
    """A `status` answer as a value."""
    instances = tuple(
        InstanceActivity(
            InstanceId(str(item["instance_id"])),
            int(item["queue"]),
            int(item["executing"]),
            int(item["served"]),
            float(item["idle_s"]),
            float(item["run_p50_ms"]),
            float(item["run_p99_ms"]),
            bool(item["parked"]),
            int(item["items"]),
            float(item["run_items"]),
        )
        for item in answer["instances"]
    )
    private, shared, proportional = (int(answer[name]) for name in ("private_bytes", "shared_bytes", "proportional_bytes"))
    return RuntimeActivity(instances, private, shared, proportional, float(answer["cpu_s"]))


class ControlledRuntime(ABC):
    """Implements `Runtime` over a control socket. The process is watched by pidfd; a lost connection alone is made anew."""

    container_id = ""

    def __init__(
        self, folder: Path, hello: Hello, client: ControlClient, watched: Watched, batch_delay_us: int, load_timeout_s: float
    ) -> None:
        self._folder = folder
        self._hello = hello
        self._client = client
        self._watched = watched
        self._batch_delay_us = batch_delay_us
        self._load_timeout_s = load_timeout_s

    @property
    def hello(self) -> Hello:
        return self._hello

    @property
    def alive(self) -> bool:
        return self._watched.alive

    async def _call(self, op: str, timeout_s: float, on_event: Callable[[Message], None] | None = None, **fields: Any) -> Message:
        if not self.alive:
            raise Unavailable(f"runtime {self._hello.runtime_id}: its process {self._hello.pid} has ended")
        if self._client.closed:
            self._client = await self._connect_again()
        return await self._client.call(op, timeout_s, on_event, **fields)

    async def _connect_again(self) -> ControlClient:
        """Raises: Unavailable: nobody listens, or another process than before: its folder may hold a link to a stranger's socket by now."""
        name = f"runtime {self._hello.runtime_id}"
        client = await ControlClient.connect(self._folder / "control.sock", name, CONNECT_S)
        found = client.peer_pid
        if found != self._hello.pid:
            client.close()
            raise Unavailable(f"{name}: process {found} listens in place of {self._hello.pid}")
        return client

    async def _ask(
        self,
        read: Callable[[Message], Answer],
        op: str,
        timeout_s: float = CALL_S,
        on_event: Callable[[Message], None] | None = None,
        **fields: Any,
    ) -> Answer:
        """Raises: Unavailable: also where the answer makes no sense. What came of the call is as unknown as without one."""
        answer = await self._call(op, timeout_s, on_event, **fields)
        try:
            return read(answer)
        except NONSENSE as error:
            reason = f"{type(error).__name__}: {error}"
            raise Unavailable(f"runtime {self._hello.runtime_id} answers {op!r} with what makes no sense: {reason}") from error

    async def load(
        self,
        instance_id: InstanceId,
        generation: Generation,
        variant: VariantKey,
        artifact: Digest | None,
        verify: bool,
        timeout_s: float,
        mapped: Callable[[LoadReport], None] | None = None,
        becoming: Becoming | None = None,
    ) -> LoadReport:
        made_of: dict[str, str | float] = {} if becoming is None else {"donor": becoming.donor, "donor_idle_s": becoming.idle_s}
        if becoming is not None and becoming.delta:
            made_of["delta"] = becoming.delta.decode()
        rest = Stage.LOAD if becoming is None else Stage.TRANSFORM
        return await self._ask(
            lambda answer: _load_report(answer, Stage.MAP, rest),
            "load",
            timeout_s,
            on_event=None if mapped is None else lambda message: mapped(_load_report(message, Stage.MAP)),
            instance_id=instance_id,
            generation=generation_text(generation),
            variant=str(variant),
            artifact=artifact or "",
            max_delay_us=self._batch_delay_us,
            verify=verify,
            early=mapped is not None,
            **made_of,
        )

    async def unload(self, instance_id: InstanceId, drain_ms: int) -> frozenset[Digest]:
        # One thread opens and closes: the loads of others may come first, and each of these may take its time.
        patience_s = CALL_S + drain_ms / 1e3 + self._load_timeout_s
        return await self._ask(
            lambda answer: frozenset(map(Digest, answer.get("released", ()))),
            "unload",
            patience_s,
            instance_id=instance_id,
            drain_ms=drain_ms,
        )

    async def declare(self) -> Declaration:
        return await self._ask(
            lambda answer: Declaration(frozenset(map(Digest, answer["holds"])), frozenset(map(Digest, answer["mapped"]))), "hello"
        )

    async def trim(self, digests: Collection[Digest] | None = None) -> None:
        await self._call("trim", CALL_S, digests=None if digests is None else sorted(digests))

    async def measure(self, instance_ids: Sequence[InstanceId], batch: int, seconds: float, min_repeats: int, spread: float) -> Slice:
        return await self._ask(
            _slice,
            "measure",
            60.0 + 10 * seconds,
            instances=list(instance_ids),
            batch=batch,
            seconds=seconds,
            min_repeats=min_repeats,
            spread=spread,
        )

    async def activity(self, window_s: float, memory_age_s: float) -> RuntimeActivity:
        return await self._ask(activity_of, "status", window_s=window_s, memory_age_s=memory_age_s)

    def mappings(self) -> int:
        return mapping_count(self._hello.pid) if self.alive else 0

    def slow_down(self) -> None:
        lower_priority(self._hello.pid)

    async def end(self, drain_ms: int) -> None:
        try:
            await self._call("shutdown", CALL_S + drain_ms / 1e3, drain_ms=drain_ms)
        except TesseraError:
            self.kill()
        if not await self._watched.wait(drain_ms / 1e3 + END_MARGIN_S):
            self.kill()
            await self._watched.wait(END_MARGIN_S)
        self._client.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @abstractmethod
    def kill(self) -> None:
        """At once, without a word."""

    @abstractmethod
    async def cause(self) -> str:
        """Why it ended, in words; empty when that is not known within a second."""

    def leave(self) -> None:
        """It lives on, unwatched."""
        self._watched.release()
        self._client.close()


def _load_report(message: Message, *stages: Stage) -> LoadReport:
    times = tuple(StageTime(stage, float(message["stages"].get(stage.value, 0.0))) for stage in stages)
    return LoadReport(times, int(message["mapped_bytes"]), int(message["private_bytes"]))


def _slice(answer: Message) -> Slice:
    return Slice(
        int(answer["repeats"]),
        tuple(map(float, answer["quantiles_ms"])),
        float(answer["mean_ms"]),
        float(answer["spread"]),
        int(answer["peak_private_bytes"]),
    )


async def connect(socket: Path, name: str, timeout_s: float, clock: Clock, watched: Watched | None = None) -> ControlClient:
    """Waits while the socket is not there yet; with `watched` also while nobody listens, for as long as that process lives.

    Raises:
        Unavailable: nobody takes the connection within `timeout_s`.
    """
    deadline_s = clock.monotonic_s() + timeout_s
    while True:
        try:
            return await ControlClient.connect(socket, name, timeout_s)
        except Unavailable as error:
            waits = isinstance(error.__cause__, FileNotFoundError) or watched is not None
            if not waits or clock.monotonic_s() >= deadline_s or (watched is not None and not watched.alive):
                raise
        await clock.sleep(SOCKET_POLL_S if watched is None else 10 * SOCKET_POLL_S)


def user_id(user: int | None) -> int:
    """The user id of a domain's processes; `user` None: our own."""
    return os.geteuid() if user is None else user


def check_user(client: ControlClient, name: str, user: int | None) -> None:
    """Who it is the kernel says: a socket's folder is its domain's to write, and what lies there may be anything. `user` None: our own.

    Raises:
        Unavailable: whoever listens is not of the user that it should be; the connection is closed.
    """
    wanted = user_id(user)
    if client.peer_user != wanted:
        found = client.peer_user
        client.close()
        raise Unavailable(f"{name} belongs to user {found}, not to {wanted}")


def remove_stray(folder: Path) -> None:
    """Removes a runtime's folder as far as it can be; of a link only the link."""
    if folder.is_symlink():
        with suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def watch_peer(client: ControlClient, name: str, user: int | None, ended: Callable[[], None] | None = None) -> Watched:
    """Watches the process at the other end, which the kernel names: it will be signalled, so no number that anybody says will do.

    Raises:
        Unavailable: it has ended, or is not of the user that it should be.
        UnseenProcess: its process cannot be seen from here.
    """
    check_user(client, name, user)
    pid = client.peer_pid
    if pid <= 0:
        raise UnseenProcess(
            f"{name}: its process cannot be seen from here, so its end would go unnoticed: run the node agent with the host's process ids "
            "(pid: host)"
        )
    try:
        return watch_listener(pid, user_id(user), ended)
    except ProcessLookupError as error:
        raise Unavailable(f"{name}: its process has ended") from error
    except PermissionError as error:
        raise Unavailable(f"{name}: {error}") from error


async def _first_words(client: ControlClient, runtime_id: str, timeout_s: float, load_timeout_s: float) -> Message:
    """What it answers to `hello`.

    Raises:
        Unavailable: it has said nothing within `timeout_s`, or what it loads has not settled `load_timeout_s` after that.
    """
    try:
        async with asyncio.timeout(timeout_s) as patience:

            def hear(message: Message) -> None:
                if message.get("event") == "loading" and not patience.expired():
                    patience.reschedule(None)  # from here on the call's own time counts, however often it says so
                    _log.info(
                        "a runtime is asked what it holds and has to end its load first",
                        runtime_id=runtime_id,
                        instances=message.get("instances"),
                        at_most_s=load_timeout_s,
                    )

            return await client.call("hello", timeout_s + load_timeout_s, hear)
    except TimeoutError as error:
        raise Unavailable(f"runtime {runtime_id} did not answer 'hello' within {timeout_s:g} s") from error


async def introduce(
    client: ControlClient,
    runtime_id: str,
    trust_domain: TrustDomain,
    user: int | None,
    timeout_s: float,
    load_timeout_s: float,
    ended: Callable[[], None],
) -> tuple[Hello, Watched]:
    """Watches the process at the other end and asks who it is; `ended` is told of its end. Watched first: a process that answers after that
    is the watched one, whatever became of earlier bearers of its number. One that says within `timeout_s` that it is loading has
    `load_timeout_s` more.

    Raises:
        Unavailable: it does not answer in time, has ended, or is another one or of another user.
        FailedPrecondition: it belongs to another trust domain.
        UnseenProcess: its process cannot be seen from here. Before it is asked anything: no answer can raise this.
        TesseraError: its answer is an error, or makes no sense.
    """
    name = f"runtime {runtime_id}"
    watched = watch_peer(client, name, user, ended)
    try:
        answer = await _first_words(client, runtime_id, timeout_s, load_timeout_s)
        if answer.get("trust_domain") != trust_domain:
            raise FailedPrecondition(f"{name} is of trust domain {answer.get('trust_domain')!r}, in the folder of {trust_domain!r}")
        hello = hello_of(answer, watched.pid)
        if hello.runtime_id != runtime_id:
            raise Unavailable(f"{name} says that it is {hello.runtime_id!r}")
        return hello, watched
    except BaseException:
        watched.release()
        raise
