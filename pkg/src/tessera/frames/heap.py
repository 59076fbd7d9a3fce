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


_NEW_BYTES = ctypes.pythonapi.PyBytes_FromStringAndSize
_NEW_BYTES.restype = ctypes.py_object
_NEW_BYTES.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
_ADDRESS_OF = ctypes.pythonapi.PyBytes_AsString
_ADDRESS_OF.restype = ctypes.c_void_p
_ADDRESS_OF.argtypes = (ctypes.py_object,)
_VIEW_OF = ctypes.pythonapi.PyMemoryView_FromMemory
_VIEW_OF.restype = ctypes.py_object
_VIEW_OF.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_WRITE = 0x200


def unwritten_bytes(size: int) -> tuple[bytes, memoryview]:
    """Bytes that are still to be written, and the view to do so. What needs `bytes` in the end is then received into them instead of
    being copied; C code makes them this way, and only this way may they be written, before anybody else has seen them.

    The view does not keep the bytes: whoever holds it holds both.
    """
    if size < 2:
        raise ValueError("bytes of fewer than two are shared by everybody")
    made: bytes = _NEW_BYTES(None, size)
    view: memoryview = _VIEW_OF(_ADDRESS_OF(made), size, _WRITE)
    return made, view
