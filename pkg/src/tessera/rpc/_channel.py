"""A `grpc.aio.Channel` whose calls raise domain errors, have a deadline, and pass the token and the trace context on.

It wraps the channel instead of using grpc.aio's interceptors: those cost a task per call and lose `read` and the trailing metadata
on streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from tessera.rpc._call_details import checked_token, metadata_of
from tessera.rpc._options import MAX_MESSAGE_BYTES, STREAM_DEADLINE_S, UNARY_DEADLINE_S, client_options
from tessera.rpc._status import error_of_rpc


def connect(
    address: str,
    token: str | None = None,
    *,
    default_deadline_s: float = UNARY_DEADLINE_S,
    stream_deadline_s: float = STREAM_DEADLINE_S,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> grpc.aio.Channel:
    """A channel to "host:port" or "unix:path"; connects at the first call and again after each loss. Close it when done.

    Calls raise `TesseraError`s (and `asyncio.CancelledError` when their own task is cancelled). Where the caller gives no `timeout`,
    unary calls end after `default_deadline_s`, streams in one direction after `stream_deadline_s`; streams both ways have no deadline.

    Raises:
        InvalidInput: the token cannot be sent.
    """
    inner = grpc.aio.insecure_channel(address, options=client_options(max_message_bytes))
    return _Channel(inner, checked_token(token), default_deadline_s, stream_deadline_s)


class _Channel(grpc.aio.Channel):
    def __init__(self, inner: grpc.aio.Channel, token: str | None, unary_s: float, stream_s: float) -> None:
        self._inner = inner
        self._token = token
        self._unary_s = unary_s
        self._stream_s = stream_s

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._wrap(self._inner.unary_unary(*arguments, **options), _UnaryUnaryCall, self._unary_s)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._wrap(self._inner.unary_stream(*arguments, **options), _UnaryStreamCall, self._stream_s)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._wrap(self._inner.stream_unary(*arguments, **options), _StreamUnaryCall, self._stream_s)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._wrap(self._inner.stream_stream(*arguments, **options), _StreamStreamCall, None)

    def _wrap(self, invoke: Callable[..., Any], call_type: Callable[[Any], Any], deadline_s: float | None) -> Callable[..., Any]:
        token = self._token

        def call(request: Any = None, *, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
            chosen = deadline_s if timeout is None else timeout
            made = invoke(request, timeout=chosen, metadata=metadata_of(metadata, token), **options)
            if issubclass(call_type, _Requests):  # type: ignore[arg-type] # always a class here
                made._cython_call = _KeepsStatus(made._cython_call)
            return call_type(made)

        return call

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        await self._inner.close()


class _KeepsStatus:
    """A write that races with the server's end of the call fails, and grpc.aio then puts "Internal error from Core" in the place of
    the status that is on its way, so that the caller never learns why. Without that the failed write waits for the real one.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def set_internal_error(self, _message: str) -> None:
        return


class _Call(grpc.aio.Call):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def cancelled(self) -> bool:
        return bool(self._inner.cancelled())

    def done(self) -> bool:
        return bool(self._inner.done())

    def time_remaining(self) -> float | None:
        remaining: float | None = self._inner.time_remaining()
        return remaining

    def cancel(self) -> bool:
        return bool(self._inner.cancel())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._inner.add_done_callback(callback)

    async def initial_metadata(self) -> Any:
        return await self._inner.initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await self._inner.trailing_metadata()

    async def code(self) -> Any:
        return await self._inner.code()

    async def details(self) -> Any:
        return await self._inner.details()

    async def wait_for_connection(self) -> None:
        try:
            await self._inner.wait_for_connection()
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None


class _Answer(_Call):
    def __await__(self) -> Generator[None, None, Any]:
        try:
            return (yield from self._inner.__await__())
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None


class _Answers(_Call):
    async def _messages(self) -> AsyncIterator[Any]:
        try:
            async for message in self._inner:
                yield message
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF` after the last."""
        try:
            return await self._inner.read()
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None


class _Requests(_Call):
    async def write(self, request: Any) -> None:
        try:
            await self._inner.write(request)
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None

    async def done_writing(self) -> None:
        try:
            await self._inner.done_writing()
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None


class _UnaryUnaryCall(_Answer, grpc.aio.UnaryUnaryCall[Any, Any]):
    pass


class _UnaryStreamCall(_Answers, grpc.aio.UnaryStreamCall[Any, Any]):
    pass


class _StreamUnaryCall(_Requests, _Answer, grpc.aio.StreamUnaryCall[Any, Any]):
    pass


class _StreamStreamCall(_Requests, _Answers, grpc.aio.StreamStreamCall[Any, Any]):
    pass
