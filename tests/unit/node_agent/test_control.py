"""The asking side of control sockets, the files, and processes that outlive their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tessera.domain.errors import DataCorrupted, FailedPrecondition, Unavailable
from tessera.domain.ids import InstanceId, RuntimeId, Term, TrustDomain
from tessera.node_agent.adapters.control import ControlClient
from tessera.node_agent.adapters.controlled import introduce
from tessera.node_agent.adapters.files import RuntimeNotes, TermFile, writable_folder
from tessera.node_agent.adapters.processes import Watched, log_tail, mapping_count, max_map_count, spawn_detached
from tessera.program import host_id
from tessera.runtime.control import ControlDecoder, encode, refusal, reply
from tessera.testing import run_virtual
from tessera.testing.builders import an_instance

Answer = Callable[[dict[str, Any]], bytes | None]


class Peer:
    """A control socket that answers as told; None closes the connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Answer = lambda message: reply(message["id"], {"echo": message})
        self.later: list[tuple[float, Answer]] = []
        """What else it says to a message, and how many seconds after its answer."""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = ControlDecoder()
        while data := await reader.read(65536):
            for message in decoder.feed(data):
                answer = self.answer(message)
                if answer is None:
                    writer.close()
                    return
                writer.write(answer)
                for delay_s, later in self.later:
                    asyncio.get_running_loop().call_later(delay_s, _write, writer, later(message))
        writer.close()


def _write(writer: asyncio.StreamWriter, data: bytes | None) -> None:
    if data is not None and not writer.is_closing():
        writer.write(data)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with Peer(tmp_path / "c.sock") as found:
        yield found


async def test_calls_overlap_and_get_their_own_answers(peer: Peer) -> None:
    held: list[dict[str, Any]] = []

    def answer(message: dict[str, Any]) -> bytes:
        held.append(message)
        if len(held) < 3:
            return b""
        return b"".join(reply(item["id"], {"n": item["n"]}) for item in reversed(held))

    peer.answer = answer
    client = await ControlClient.connect(peer.path, "peer", 1.0)
    answers = await asyncio.gather(*[client.call("x", 2.0, n=number) for number in range(3)])
    assert [item["n"] for item in answers] == [0, 1, 2]
    client.close()


async def test_errors_come_back_as_their_own_class_and_events_are_heard(peer: Peer) -> None:
    peer.answer = lambda message: encode({"event": "exit", "code": 1}) + refusal(message["id"], DataCorrupted("blob x"))
    client = await ControlClient.connect(peer.path, "peer", 1.0)
    heard: list[Any] = []
    client.on_event = heard.append
    with pytest.raises(DataCorrupted, match="blob x"):
        await client.call("load", 2.0)
    assert heard == [{"event": "exit", "code": 1}]
    client.close()


async def test_the_kernel_says_who_listens_whatever_it_says_itself(peer: Peer) -> None:
    client = await ControlClient.connect(peer.path, "peer", 1.0)
    assert client.peer_pid == os.getpid()
    client.close()
    await asyncio.sleep(0)
    assert client.peer_pid == 0


async def test_a_process_that_cannot_be_seen_is_no_runtime_to_watch(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await ControlClient.connect(peer.path, "peer", 1.0)
    monkeypatch.setattr(ControlClient, "peer_pid", 0)
    with pytest.raises(FailedPrecondition, match="pid: host"):
        await introduce(client, "rt-1", TrustDomain("default"), None, 2.0, 0.0, lambda: None)
    client.close()


async def test_a_runtime_of_another_trust_domain_is_refused(peer: Peer) -> None:
    hello = {"runtime_id": "rt-1", "pid": 7, "flavour": "ort", "trust_domain": "other"}
    peer.answer = lambda message: reply(message["id"], hello)
    client = await ControlClient.connect(peer.path, "peer", 1.0)
    with pytest.raises(FailedPrecondition, match="'other', in the folder of 'default'"):
        await introduce(client, "rt-1", TrustDomain("default"), None, 2.0, 0.0, lambda: None)
    found, watched = await introduce(client, "rt-1", TrustDomain("other"), None, 2.0, 0.0, lambda: None)
    assert (found.runtime_id, found.pid) == ("rt-1", os.getpid())  # not the number that it has where it runs
    watched.release()
    client.close()


def says_loading(message: dict[str, Any]) -> bytes:
    return encode({"id": message["id"], "event": "loading", "instances": ["i1"]})


async def introduced(path: Path, answer: Answer, later: list[tuple[float, Answer]]) -> tuple[str, float]:
    """What comes of an introduction to a runtime that has 5 s for its first word and 120 s for a load, and when, in seconds."""
    async with Peer(path) as peer:
        peer.answer, peer.later = answer, later
        client = await ControlClient.connect(path, "runtime rt-1", 1.0)
        begun_s = asyncio.get_running_loop().time()
        try:
            found, watched = await introduce(client, "rt-1", TrustDomain("default"), None, 5.0, 120.0, lambda: None)
            watched.release()
            outcome = ",".join(held.instance_id for held in found.instances)
        except Unavailable as error:
            outcome = str(error)
        took_s = asyncio.get_running_loop().time() - begun_s
        client.close()
        await asyncio.sleep(1)  # the other end sees it
        return outcome, took_s


def test_a_runtime_that_loads_is_waited_for_as_long_as_a_load_may_take(tmp_path: Path) -> None:
    instance = {"instance_id": "i1", "generation": f"{7:016x}", "variant": "m@1/v"}
    hello = {"runtime_id": "rt-1", "pid": 7, "flavour": "ort", "trust_domain": "default", "instances": [instance]}

    def settled(message: dict[str, Any]) -> bytes:
        return reply(message["id"], hello)

    cases: list[tuple[Answer, list[tuple[float, Answer]], str, float]] = [
        (settled, [], "i1", 0),
        (says_loading, [(100, settled)], "i1", 100),
        (lambda message: b"", [(100, settled)], "runtime rt-1 did not answer 'hello' within 5 s", 5),
        (says_loading, [], "runtime rt-1 did not answer 'hello' within 125 s", 125),
        (says_loading, [(each, says_loading) for each in range(1, 200)], "runtime rt-1 did not answer 'hello' within 125 s", 125),
        (says_loading, [(50, lambda message: encode({"event": "released"}) + b"\x01\0\0\0[")], "control message", 50),
    ]
    for index, (answer, later, outcome, after_s) in enumerate(cases):
        said, took_s = run_virtual(partial(introduced, tmp_path / f"{index}.sock", answer, later))
        assert outcome in said
        assert took_s == pytest.approx(after_s, abs=0.01)


@pytest.mark.parametrize(
    ("answer", "words"), [(lambda message: None, "was lost"), (lambda message: b"\x01\0\0\0[", "must be a JSON object")]
)
async def test_a_lost_or_broken_connection_fails_what_waits(peer: Peer, answer: Answer, words: str) -> None:
    peer.answer = answer
    client = await ControlClient.connect(peer.path, "the peer", 1.0)
    with pytest.raises(Unavailable, match=f"the peer: .*{words}"):
        await client.call("x", 2.0)
    await asyncio.sleep(0)
    assert client.closed
    with pytest.raises(Unavailable, match="closed"):
        await client.call("x", 2.0)


async def test_no_answer_in_time_says_so(peer: Peer) -> None:
    peer.answer = lambda message: b""
    client = await ControlClient.connect(peer.path, "the peer", 1.0)
    with pytest.raises(Unavailable, match=r"the peer did not answer 'x' within 0\.05 s"):
        await client.call("x", 0.05)
    client.close()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="runtime rt-1 cannot be reached"):
        await ControlClient.connect(tmp_path / "none.sock", "runtime rt-1", 0.5)


def test_the_term_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = TermFile(tmp_path)
    assert file.load() is None
    file.save(Term(2**63 + 5, 12))
    file.save(Term(2**63 + 5, 13))
    assert TermFile(tmp_path).load() == Term(2**63 + 5, 13)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["term"]


def test_notes_lie_in_their_runtimes_folder_whatever_the_id(tmp_path: Path) -> None:
    notes = RuntimeNotes(tmp_path)
    for name in ("plain-1", "../../escape", "a/b", "\0"):
        record = an_instance(name, runtime_id=RuntimeId("rt-1"))
        notes.write(record, 10, 20)
        assert notes.read(RuntimeId("rt-1"), InstanceId(name)) == (record, 10, 20)
    assert {path.parent.name for path in tmp_path.rglob("*.note")} == {"rt-1"}
    notes.remove(RuntimeId("rt-1"), InstanceId("plain-1"))
    assert notes.read(RuntimeId("rt-1"), InstanceId("plain-1")) is None
    assert (tmp_path / "notes").stat().st_mode & 0o777 == 0o700
    for name in ("rt-2", "rt-3"):
        notes.write(an_instance("x", runtime_id=RuntimeId(name)), 1, 1)
    notes.forget(RuntimeId("rt-2"))
    notes.forget(RuntimeId("rt-2"))
    notes.keep([RuntimeId("rt-1")])
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["rt-1"]


def test_an_unwritable_folder_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match=r"state_folder .*file/x cannot be written"):
        writable_folder("state_folder", tmp_path / "file" / "x")


async def test_a_watched_process_tells_its_end_once_and_is_reaped(tmp_path: Path) -> None:
    ends: list[int] = []
    pid = spawn_detached(
        [sys.executable, "-c", "import sys, time; print('begun', flush=True); time.sleep(60)"], tmp_path / "log", os.environ
    )
    watched = Watched(pid, lambda: ends.append(pid))
    assert os.getsid(pid) == pid
    assert not await watched.wait(0.3)
    while log_tail(tmp_path / "log") != "begun":  # noqa: ASYNC110 - another process is waited for
        await asyncio.sleep(0.01)
    assert mapping_count(pid) > 5
    await watched.end(5.0)
    assert (ends, watched.alive, mapping_count(pid)) == ([pid], False, 0)
    assert log_tail(tmp_path / "log") == "begun"
    watched.send(signal.SIGKILL)  # nothing, and nobody else's process
    with pytest.raises(ProcessLookupError):
        Watched(pid)


async def test_one_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    watched = Watched(spawn_detached([sys.executable, "-c", code], tmp_path / "log", os.environ))
    async with asyncio.timeout(10):
        while log_tail(tmp_path / "log") != "deaf":  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)
    await watched.end(0.2)
    assert not watched.alive


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be started"):
        spawn_detached(["/no/such/program"], tmp_path / "log", {})


def test_facts_of_this_machine() -> None:
    assert host_id() == host_id() != ""
    assert max_map_count() > 1000
