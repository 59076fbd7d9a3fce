"""What storages say when they fail, as domain errors: S3 libraries have exceptions of their own, and a full disk has one word."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tessera.domain.errors import ResourceExhausted, TesseraError, Unavailable

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when there is no room."""


@contextmanager
def translated(url: str, is_callers: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
    """Around calls to the storage at `url`. Domain errors pass, and those that `is_callers` knows.

    Raises:
        ResourceExhausted: the storage is full.
        Unavailable: any other failure: what can be read again later, as far as anybody knows here.
    """
    try:
        yield
    except TesseraError:
        raise
    except Exception as error:
        if is_callers(error):
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            raise ResourceExhausted(f"repository {url} is full: {error.strerror}") from error
        raise Unavailable(f"repository {url}: {str(error) or type(error).__name__}") from error
