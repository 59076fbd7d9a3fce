"""The C heap, set for bodies of some hundred KiB that come and go with every request."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MMAP_THRESHOLD_BYTES = 32 << 20
"""glibc's largest."""


def keep_freed_memory(trim_threshold_bytes: int = 32 << 20, pad_bytes: int = 4 << 20) -> bool:
    """Lets the heap keep up to `trim_threshold_bytes` free at its end instead of giving each body back to the kernel.

    Without it a body of 600 KB is mapped, faulted in and unmapped at every request: 1.1 ms there and back instead of 0.3. For processes
    that carry frames, once at their start. False where the C library has no `mallopt` (nothing is changed then).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    wanted = ((_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES), (_M_TRIM_THRESHOLD, trim_threshold_bytes), (_M_TOP_PAD, pad_bytes))
    done = [mallopt(key, value) == 1 for key, value in wanted]
    return all(done)


_NEW_BYTEARRAY = ctypes.pythonapi.PyByteArray_FromStringAndSize
_NEW_BYTEARRAY.restype = ctypes.py_object
_NEW_BYTEARRAY.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)


def unwritten(size: int) -> bytearray:
    """`size` bytes whose content is whatever the heap held, for who overwrites every one of them before anybody reads: `bytearray(size)`
    writes zeros first, which costs a large body a tenth of its way."""
    made: bytearray = _NEW_BYTEARRAY(None, size)
    return made
