"""Names and ids, and how they are written (docs/nomenclature.md)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import NewType

from tessera.domain.errors import InvalidInput

ModelName = NewType("ModelName", str)
VersionNumber = NewType("VersionNumber", int)
VariantName = NewType("VariantName", str)
TrustDomain = NewType("TrustDomain", str)
NodeId = NewType("NodeId", str)
RuntimeId = NewType("RuntimeId", str)
InstanceId = NewType("InstanceId", str)
RequestId = NewType("RequestId", str)
"""The W3C trace id of a request: 32 lowercase hex digits."""
Digest = NewType("Digest", str)
"""BLAKE3 of raw little-endian content: 64 lowercase hex digits."""
Generation = NewType("Generation", int)
"""64 random bits drawn when an instance is loaded, never used again."""
BuildClass = NewType("BuildClass", str)
ProfileClass = NewType("ProfileClass", str)
JobId = NewType("JobId", str)

DEFAULT_TRUST_DOMAIN = TrustDomain("default")
MAX_NAME_CHARS = 128

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def checked_name(field: str, value: str) -> str:
    """Returns `value` when it is a valid name of a model, alias, task, dataset or trust domain.

    Raises:
        InvalidInput: names the field, the value and the rule.
    """
    if len(value) > MAX_NAME_CHARS:
        raise InvalidInput(field, value[:40] + "...", f"at most {MAX_NAME_CHARS} characters, got {len(value)}")
    if not _NAME.fullmatch(value):
        raise InvalidInput(field, value, "must match [a-z0-9][a-z0-9._-]*")
    return value


def checked_digest(field: str, value: str) -> Digest:
    """Returns `value` when it is a digest: 64 lowercase hex digits.

    Raises:
        InvalidInput: names the field and the value.
    """
    if not _DIGEST.fullmatch(value):
        raise InvalidInput(field, value[:80], "must be 64 lowercase hex digits")
    return Digest(value)


DOMAIN_TAG_CHARS = 6


def domain_tag(trust_domain: TrustDomain) -> str:
    """A trust domain in six hex digits, the same ones always: for paths and ids, where the name would be too long."""
    return hashlib.sha256(trust_domain.encode()).hexdigest()[:DOMAIN_TAG_CHARS]


@dataclass(frozen=True, slots=True, order=True)
class VersionKey:
    """MODEL@VERSION within one trust domain."""

    trust_domain: TrustDomain
    model: ModelName
    version: VersionNumber

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True, order=True)
class VariantKey:
    """MODEL@VERSION/VARIANT within one trust domain."""

    trust_domain: TrustDomain
    model: ModelName
    version: VersionNumber
    variant: VariantName

    def __str__(self) -> str:
        return f"{self.model}@{self.version}/{self.variant}"

    @property
    def version_key(self) -> VersionKey:
        return VersionKey(self.trust_domain, self.model, self.version)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """What a user may write for a model: NAME, NAME@VERSION or NAME@VERSION/VARIANT."""

    name: ModelName
    version: VersionNumber | None = None
    variant: VariantName | None = None


def parse_reference(text: str) -> ModelReference:
    """Reads NAME, NAME@VERSION or NAME@VERSION/VARIANT.

    Raises:
        InvalidInput: when a part is malformed.
    """
    name, has_version, rest = text.partition("@")
    checked_name("model name", name)
    if not has_version:
        return ModelReference(ModelName(name))
    version, has_variant, variant = rest.partition("/")
    number = parse_version(version)
    if not has_variant:
        return ModelReference(ModelName(name), number)
    return ModelReference(ModelName(name), number, VariantName(checked_name("variant", variant)))


def parse_version(text: str) -> VersionNumber:
    """Reads a version number, at least 1.

    Raises:
        InvalidInput: when it is not one.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < 1:
        raise InvalidInput("model version", text[:40], "must be a whole number from 1 to 999999999")
    return VersionNumber(int(text))


@dataclass(frozen=True, slots=True, order=True)
class Term:
    """The scheduler leader's fencing token.

    Terms of one etcd cluster are ordered by the create-revision of the election key; a term of another cluster is neither older
    nor newer (an agent that sees a new cluster takes it as newer, because the old one is gone).
    """

    cluster_id: int
    revision: int

    def is_older_than(self, other: Term) -> bool:
        return self.cluster_id == other.cluster_id and self.revision < other.revision
