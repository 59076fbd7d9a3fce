"""Hashes a file behind whoever fills it. BLAKE3 wants its bytes in order, whatever order and whichever way they come.

What is there from the beginning on is the prefix; only the prefix is read, through a mapping of the file, while it is in the cache
still. A large file has a thread of its own for that, so that the next bytes arrive while the last ones are hashed (blake3 lets go of
the interpreter's lock); for a small one it would cost more than it saves.
"""

from __future__ import annotations

import mmap
import threading

from blake3 import blake3

THREAD_FROM_BYTES = 4 << 20
STEP_BYTES = 1 << 20
"""Hashed at a time, at most: what fits into a core's cache."""


class Follower:
    """`advance` and `finish` are called by one thread at a time."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._hasher = blake3()
        self._map = mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ) if size_bytes else None
        self._prefix = 0
        self._hashed = 0
        self._ended = False
        self._grown = threading.Condition()
        self._thread: threading.Thread | None = None

    def advance(self, prefix: int) -> None:
        """The first `prefix` bytes are in the file."""
        if self._size_bytes < THREAD_FROM_BYTES:
            self._prefix = prefix
            self._hash_to(prefix)
            return
        with self._grown:
            self._prefix = prefix
            self._grown.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="hash", daemon=True)
            self._thread.start()

    def hexdigest(self) -> str:
        """Of the prefix, when all of it is hashed."""
        self._end(self._prefix)
        return str(self._hasher.hexdigest())

    def close(self) -> None:
        """Hashes no further. May be called again."""
        self._end(0)
        if self._map is not None:
            self._map.close()
            self._map = None

    def _end(self, least: int) -> None:
        if self._thread is None:
            return
        with self._grown:
            self._ended = True
            self._prefix = max(self._hashed, least)
            self._grown.notify()
        self._thread.join()
        self._thread = None

    def _follow(self) -> None:
        while True:
            with self._grown:
                while self._prefix <= self._hashed:
                    if self._ended:
                        return
                    self._grown.wait()
                prefix = self._prefix
            self._hash_to(min(prefix, self._hashed + STEP_BYTES))

    def _hash_to(self, end: int) -> None:
        assert self._map is not None
        with memoryview(self._map) as whole, whole[self._hashed : end] as new:
            self._hasher.update(new)
        self._hashed = end
