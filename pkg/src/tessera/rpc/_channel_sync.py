"""The blocking flavour of `connect`, for the SDK's synchronous side: a `grpc.Channel` whose calls raise domain errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from tessera.rpc._call_details import checked_token, metadata_of
from tessera.rpc._options import MAX_MESSAGE_BYTES, STREAM_DEADLINE_S, UNARY_DEADLINE_S, client_options
from tessera.rpc._status import error_of_rpc


def connect_sync(
    address: str,
    token: str | None = None,
    *,
    default_deadline_s: float = UNARY_DEADLINE_S,
    stream_deadline_s: float = STREAM_DEADLINE_S,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> grpc.Channel:
    """As `connect`, blocking. Usable from several threads.

    Raises:
        InvalidInput: the token cannot be sent.
    """
    inner = grpc.insecure_channel(address, options=client_options(max_message_bytes))
    return _Channel(inner, checked_token(token), default_deadline_s, stream_deadline_s)


class _Channel(grpc.Channel):
    def __init__(self, inner: grpc.Channel, token: str | None, unary_s: float, stream_s: float) -> None:
        self._inner = inner
        self._token = token
        self._unary_s = unary_s
        self._stream_s = stream_s

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False) -> None:
        self._inner.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._inner.unsubscribe(callback)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Unary(self._inner.unary_unary(*arguments, **options), self._token, self._unary_s)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Unary(self._inner.stream_unary(*arguments, **options), self._token, self._stream_s)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Stream(self._inner.unary_stream(*arguments, **options), self._token, self._stream_s)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Stream(self._inner.stream_stream(*arguments, **options), self._token, None)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._inner.close()


class _Method:
    def __init__(self, invoke: Any, token: str | None, deadline_s: float | None) -> None:
        self._invoke = invoke
        self._token = token
        self._deadline_s = deadline_s

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("timeout") is None:
            options["timeout"] = self._deadline_s
        options["metadata"] = metadata_of(options.get("metadata"), self._token)
        return options


class _Unary(_Method):
    def __call__(self, request: Any, **options: Any) -> Any:
        try:
            return self._invoke(request, **self._options(options))
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None

    def with_call(self, request: Any, **options: Any) -> Any:
        try:
            return self._invoke.with_call(request, **self._options(options))
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None

    def future(self, request: Any, **options: Any) -> Any:
        """A future of the plain library: its `result` raises `grpc.RpcError`; `error_of_rpc` turns that into the domain error."""
        return self._invoke.future(request, **self._options(options))


class _Stream(_Method):
    def __call__(self, request: Any, **options: Any) -> _Answers:
        return _Answers(self._invoke(request, **self._options(options)))


class _Answers:
    """Iterates over the answers; everything else a gRPC call can do (`cancel`, `trailing_metadata`, ...) goes to the call."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._inner)
        except grpc.RpcError as error:
            raise error_of_rpc(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
