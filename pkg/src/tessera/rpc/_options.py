"""Limits and channel arguments that both sides share."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message."""

MESSAGE_OVERHEAD_BYTES = 64 * 1024
"""What a message may have above that: names and parameters beside 64 MiB of tensor."""

UNARY_DEADLINE_S = 60.0
"""Deadline of a unary call whose caller set none."""

STREAM_DEADLINE_S = 3600.0
"""Deadline of an upload or download stream whose caller set none. Streams both ways have none: they live as long as both ends do."""

_KEEPALIVE_MS = 20_000


def message_options(max_message_bytes: int) -> list[tuple[str, int]]:
    limit = max_message_bytes + MESSAGE_OVERHEAD_BYTES
    return [("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)]


def client_options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        *message_options(max_message_bytes),
        # A peer that vanished without a word is noticed, also under a stream on which nobody speaks.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS // 2),
        ("grpc.http2.max_pings_without_data", 0),
        # A service that was restarted is found again in a second, not in the two minutes that the back-off grows to.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # This one is also how long a connection may take to come about: a busy machine needs more than the back-off.
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Channels to the same address in one process are still connections of their own.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]


def server_options(max_message_bytes: int, reuse_port: bool) -> list[tuple[str, int]]:
    return [
        *message_options(max_message_bytes),
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 4),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 4),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
