"""What may be uploaded: a list of files with relative paths, sizes and digests, within limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest, checked_digest

_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Bounds of one upload."""

    files: int = 2000
    file_bytes: int = 32 << 30
    total_bytes: int = 64 << 30
    path_bytes: int = 512


@dataclass(frozen=True, slots=True, order=True)
class SourceFile:
    """One file of a source; `path` is relative with '/' between its parts."""

    path: str
    size_bytes: int
    digest: Digest


def checked_path(path: str, limits: UploadLimits) -> str:
    """Returns `path` when it names a file below a folder, on every system.

    Raises:
        InvalidInput: names the path and the rule it breaks.
    """
    if not path:
        raise InvalidInput("file path", path, "must not be empty")
    if len(path.encode("utf-8", "surrogatepass")) > limits.path_bytes:
        raise InvalidInput("file path", path[:80] + "...", f"at most {limits.path_bytes} bytes")
    if any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF or ord(char) == 127 for char in path):
        raise InvalidInput("file path", path[:120], "must not hold control characters")
    if "\\" in path:
        raise InvalidInput("file path", path, "must not hold a backslash; '/' stands between parts")
    if path.startswith("/") or path[1:2] == ":":
        raise InvalidInput("file path", path, "must be relative")
    parts = path.split("/")
    if ".." in parts:
        raise InvalidInput("file path", path, "must not leave the folder by '..'")
    if "" in parts or "." in parts:
        raise InvalidInput("file path", path, "must not have empty parts or '.'")
    if len(parts) > _MAX_DEPTH:
        raise InvalidInput("file path", path, f"at most {_MAX_DEPTH} parts")
    return path


def checked_manifest(files: Iterable[SourceFile], limits: UploadLimits) -> tuple[SourceFile, ...]:
    """The files in the order of their paths.

    Raises:
        InvalidInput: names the first path that breaks a rule, or the limit.
    """
    found: dict[str, SourceFile] = {}
    total = 0
    for file in files:
        checked_path(file.path, limits)
        checked_digest(f"digest of {file.path}", file.digest)
        if file.path in found:
            raise InvalidInput("file path", file.path, "stands twice in the upload")
        if file.size_bytes > limits.file_bytes:
            raise InvalidInput(f"size of {file.path}", file.size_bytes, f"at most {limits.file_bytes} bytes a file")
        found[file.path] = file
        total += file.size_bytes
        if len(found) > limits.files:
            raise InvalidInput("files", None, f"at most {limits.files} files an upload ({file.path} is one too many)")
        if total > limits.total_bytes:
            raise InvalidInput("files", total, f"at most {limits.total_bytes} bytes an upload (exceeded at {file.path})")
    if not found:
        raise InvalidInput("files", None, "at least one file")
    for path in found:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in found:
                raise InvalidInput("file path", path, f"{'/'.join(parts[:depth])!r} is a file of the same upload")
    return tuple(sorted(found.values()))
