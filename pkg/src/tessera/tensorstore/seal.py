"""A stored file that nobody has written to since it was verified shows it: the nanoseconds of its modification time are its digest's.

Any write sets the time anew, and the chance that it hits the same nanosecond is one in a billion. So whoever maps a file learns for
the price of the `fstat` that it makes anyway whether the bytes are those that were hashed on their way in. It does not catch what
changes memory without a write (that takes hashing: `verify_on_bind`), nor somebody who is allowed to set times and means to deceive.
"""

from __future__ import annotations

import os

from tessera.domain.ids import Digest

_SECOND_NS = 1_000_000_000


def seal(file: int | str | os.PathLike[str], digest: Digest) -> None:
    """To be called when the bytes have been verified, by the owner. `file`: a descriptor or a path."""
    seen = os.stat(file)
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns // _SECOND_NS * _SECOND_NS + _stamp_ns(digest)))


def is_sealed(modified_ns: int, digest: Digest) -> bool:
    """Whether a file of that modification time is as it was sealed."""
    return modified_ns % _SECOND_NS == _stamp_ns(digest)


def _stamp_ns(digest: Digest) -> int:
    return int(digest[:8], 16) % _SECOND_NS
