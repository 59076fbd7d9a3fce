"""Where jobs read and write: URLs, the roots that they must lie below, and the names of what is written.

A job's URLs come from whoever may submit, and are opened with the service's rights: only what lies below a configured root is touched.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.errors import InvalidInput, PermissionDenied
from tessera.domain.ids import TrustDomain

FORMATS = ("npz", "jsonl", "parquet")
MAX_URL_CHARS = 2000
DOMAIN_FIELD = "{trust_domain}"

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Location:
    """`path` as fsspec takes it: absolute for `file`, bucket and key for object stores; never with `..`, `.` or empty parts."""

    protocol: str
    path: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def beside(self, suffix: str) -> Location:
        return Location(self.protocol, self.path + suffix)

    def inside(self, name: str) -> Location:
        return Location(self.protocol, f"{self.path}/{name}")

    def lies_below(self, root: Location) -> bool:
        return self.protocol == root.protocol and self.path.startswith(root.path.rstrip("/") + "/")


def location(field: str, url: str) -> Location:
    """Reads PROTOCOL://PATH, or an absolute path.

    Raises:
        InvalidInput: it is none, is chained (`::`), or has parts that could lead elsewhere; names the field.
    """
    shown = url[:200]
    if not url or len(url) > MAX_URL_CHARS:
        raise InvalidInput(field, shown, f"must be a URL of 1 to {MAX_URL_CHARS} characters")
    if _CONTROL.search(url):
        raise InvalidInput(field, shown, "must not hold control characters")
    if "::" in url:
        raise InvalidInput(field, shown, "chained URLs are not taken")
    found = _URL.fullmatch(url)
    protocol, path = (found[1], found[2]) if found else ("file", url)
    if protocol == "local":
        protocol = "file"
    if protocol == "file" and not path.startswith("/"):
        raise InvalidInput(field, shown, "must be file:///ABSOLUTE/PATH or another URL: the service has no working folder of yours")
    parts = path.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(field, shown, "must not hold empty, '.' or '..' parts")
    return Location(protocol, ("/" if protocol == "file" else "") + "/".join(parts))


def roots_of(trust_domain: TrustDomain, folder: str, roots: Iterable[str]) -> tuple[Location, ...]:
    """The roots of a trust domain: its part of the service's own `folder` ("": none), and `roots`, in which `{trust_domain}` is its name.

    Raises:
        InvalidInput: a root is no location.
    """
    own = [f"{folder.rstrip('/')}/{DOMAIN_FIELD}"] if folder else []
    return tuple(location("batch_roots", root.replace(DOMAIN_FIELD, trust_domain)) for root in (*own, *roots))


def check_allowed(field: str, place: Location, roots: Iterable[Location]) -> None:
    """Raises:
    PermissionDenied: it lies below none of the roots; said before anybody looks whether it exists.
    """
    known = list(roots)
    if not any(place.lies_below(root) for root in known):
        where = ", ".join(map(str, known)) or "none is configured (batch_folder, batch_roots)"
        raise PermissionDenied(f"{field} {str(place)[:200]!r}: must lie below one of the profiler's batch roots: {where}")


def format_of(field: str, place: Location, stated: str, otherwise: str = "") -> str:
    """The format that is stated, else that of the suffix, else `otherwise`.

    Raises:
        InvalidInput: it is none of FORMATS, or the suffix contradicts what is stated.
    """
    suffix = suffix_of(place)
    if stated and stated not in FORMATS:
        raise InvalidInput(f"{field}_format", stated[:40], f"must be one of {', '.join(FORMATS)}")
    if stated and suffix and stated != suffix:
        raise InvalidInput(f"{field}_format", stated, f"the {field}_url ends with .{suffix}")
    found = stated or suffix or otherwise
    if not found:
        raise InvalidInput(f"{field}_url", str(place)[:200], f"must end with .{', .'.join(FORMATS)}, or {field}_format must say what it is")
    return found


def suffix_of(place: Location) -> str:
    """One of FORMATS, or "" where the name says nothing."""
    ending = posixpath.splitext(place.path)[1].removeprefix(".").lower()
    return ending if ending in FORMATS else ""


_PART = re.compile(r"part-(\d{5,})\.(npz|jsonl|parquet|json)")
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Output:
    """What a job writes. `single`: the URL names a file, into which the parts are joined at the end; else it is a folder of parts."""

    place: Location
    format: str

    @property
    def single(self) -> bool:
        return suffix_of(self.place) != ""

    @property
    def folder(self) -> Location:
        """Where parts lie while the job runs, and their notes and its manifest beside them."""
        return self.place.beside(".parts") if self.single else self.place

    @property
    def working_manifest(self) -> Location:
        return self.folder.inside(MANIFEST)

    @property
    def final_manifest(self) -> Location:
        return self.place.beside(f".{MANIFEST}") if self.single else self.working_manifest

    def part(self, number: int) -> Location:
        return self.folder.inside(f"part-{number:05d}.{self.format}")

    def note(self, number: int) -> Location:
        return self.folder.inside(f"part-{number:05d}.json")

    @staticmethod
    def is_own(name: str) -> bool:
        """Whether a name in `folder` is one that a job gives; nothing else is ever removed."""
        return name == MANIFEST or _PART.fullmatch(name) is not None
