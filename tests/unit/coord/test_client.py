from __future__ import annotations

import grpc
import pytest

from tessera.clock import SystemClock
from tessera.coord._client import Client, Connection, parse_endpoint, translate
from tessera.coord.etcd import EtcdCoordinator, prefix_end
from tessera.coord.interface import LeaseLost
from tessera.domain.errors import FailedPrecondition, Internal, InvalidInput, ResourceExhausted, TesseraError, Unavailable
from tessera.testing.etcd import free_port


def rpc_error(code: grpc.StatusCode, details: str = "why") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:2379", ("127.0.0.1", 2379)),
        ("http://etcd-0:2379/", ("etcd-0", 2379)),
        ("[::1]:2379", ("::1", 2379)),
    ],
)
def test_endpoints_are_read(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["", "host", "host:", ":2379", "host:0", "host:65536", "host:2x", "https://host:2379", "unix:///etcd:1"])
def test_a_malformed_endpoint_is_named(text: str) -> None:
    with pytest.raises(InvalidInput, match="HOST:PORT") as caught:
        EtcdCoordinator([text])
    assert repr(text) in str(caught.value)


def test_no_endpoint_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one"):
        EtcdCoordinator([])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (rpc_error(grpc.StatusCode.UNAVAILABLE), Unavailable),
        (rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED), Unavailable),
        (rpc_error(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found"), LeaseLost),
        (rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"), ResourceExhausted),
        (rpc_error(grpc.StatusCode.FAILED_PRECONDITION), FailedPrecondition),
        (rpc_error(grpc.StatusCode.INVALID_ARGUMENT), InvalidInput),
        (rpc_error(grpc.StatusCode.UNKNOWN), Internal),
    ],
)
def test_what_a_status_means(error: grpc.aio.AioRpcError, kind: type[TesseraError]) -> None:
    translated = translate(error)
    assert type(translated) is kind
    assert (error.details() or "") in str(translated)


def test_the_end_of_a_prefix_is_the_first_key_after_it() -> None:
    assert prefix_end("/a/") == b"/a0"
    assert prefix_end("é") == b"\xc3\xaa"
    for key in ("/a/", "/a/b", "/a/\U0010ffff"):
        assert b"/a/" <= key.encode() < prefix_end("/a/")
    assert not prefix_end("/a/") > b"/ab"


class TestRetries:
    """Calls that fail as a test says, on endpoints that are taken as connected."""

    @pytest.fixture
    def client(self, monkeypatch: pytest.MonkeyPatch) -> Client:
        async def connected(self: Connection, clock: object, timeout_s: float) -> bool:
            return True

        monkeypatch.setattr(Connection, "connected", connected)
        return Client(["a:1", "b:2", "c:3"], SystemClock(), timeout_s=5.0, connect_timeout_s=1.0)

    async def test_a_read_goes_to_the_next_endpoint_and_stays_there(self, client: Client) -> None:
        asked: list[str] = []

        async def call(connection: Connection, timeout_s: float) -> str:
            assert 0 < timeout_s <= 5.0
            asked.append(connection.address)
            if connection.address != "b:2":
                raise rpc_error(grpc.StatusCode.UNAVAILABLE)
            return "answer"

        assert await client.read(call) == "answer"
        assert await client.read(call) == "answer"
        assert asked == ["a:1", "b:2", "b:2"]
        await client.close()

    async def test_a_write_is_sent_once_and_says_that_it_may_have_been_applied(self, client: Client) -> None:
        asked: list[str] = []

        async def call(connection: Connection, timeout_s: float) -> None:
            asked.append(connection.address)
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, "reset")

        with pytest.raises(Unavailable, match=r"a:1: reset; the write may have been applied"):
            await client.write(call)
        with pytest.raises(Unavailable):
            await client.write(call)
        assert asked == ["a:1", "b:2"]
        await client.close()

    async def test_a_refusal_is_final(self, client: Client) -> None:
        asked: list[str] = []

        async def call(connection: Connection, timeout_s: float) -> None:
            asked.append(connection.address)
            raise rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "no")

        for attempt in (client.read, client.write):
            with pytest.raises(InvalidInput, match="no"):
                await attempt(call)
        assert asked == ["a:1", "a:1"]
        await client.close()

    async def test_late_failures_of_one_endpoint_move_on_only_once(self, client: Client) -> None:
        first = await client.connection(client.clock.monotonic_s() + 1)
        client.failed(first)
        client.failed(first)
        assert (await client.connection(client.clock.monotonic_s() + 1)).address == "b:2"
        await client.close()


async def test_with_nobody_there_the_endpoints_and_the_reason_are_named() -> None:
    endpoints = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    coordinator = EtcdCoordinator(endpoints, timeout_s=0.6)
    with pytest.raises(Unavailable) as caught:
        await coordinator.get("/a")
    for endpoint in endpoints:
        assert endpoint in str(caught.value)
    await coordinator.close()
