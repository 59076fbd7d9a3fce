"""Error kinds. Each names its subject; one interceptor turns a kind into a status, the SDK turns it back.

`kind` is the stable word on the wire, in JSON and in frames. Subclasses narrow a kind without adding a status.
"""

from __future__ import annotations

from typing import ClassVar


class TesseraError(Exception):
    """Base of all errors that cross a boundary. `retryable` says whether the same request may be sent again unchanged."""

    kind: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Internal(TesseraError):
    """Something that should not happen did, or a backend failed."""


class InvalidInput(TesseraError):
    """A field of the caller's input is wrong: names the field, the value and the limit."""

    kind = "invalid_input"

    def __init__(self, field: str, value: object = None, limit: str = "") -> None:
        shown = "" if value is None else f" {value!r}"
        super().__init__(f"{field}{shown}: {limit}" if limit else f"{field}{shown}")
        self.field = field


class NotFound(TesseraError):
    """The named thing is not there."""

    kind = "not_found"


class ModelNotFound(NotFound):
    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(f"model {name!r} is not registered{': ' + detail if detail else ''}")


class VersionNotFound(NotFound):
    def __init__(self, name: str, version: object, known: str = "") -> None:
        super().__init__(f"model {name!r} has no version {version}{'; it has ' + known if known else ''}")


class VariantNotFound(NotFound):
    def __init__(self, key: str, known: str = "") -> None:
        super().__init__(f"variant {key!r} does not exist{'; there are ' + known if known else ''}")


class AlreadyExists(TesseraError):
    """The name is taken by something else."""

    kind = "already_exists"


class FailedPrecondition(TesseraError):
    """The state of the system forbids it now; the message says what must change first."""

    kind = "failed_precondition"


class StaleTerm(FailedPrecondition):
    """A leader of an older term tried to act."""

    kind = "stale_term"


class Conflict(TesseraError):
    """A compare-and-swap lost. The caller reads again and decides anew."""

    kind = "conflict"
    retryable = True


class ResourceExhausted(TesseraError):
    """A budget, queue or quota is full: says what was needed, what there is, and who holds it."""

    kind = "resource_exhausted"
    retryable = True


class TooLarge(ResourceExhausted):
    """A message beyond the limit; sending it again does not help."""

    kind = "too_large"
    retryable = False


class Unavailable(TesseraError):
    """The thing that should answer cannot now; another try may succeed."""

    kind = "unavailable"
    retryable = True


class DeadlineExceeded(TesseraError):
    """The caller's budget is used up."""

    kind = "deadline_exceeded"


class Cancelled(TesseraError):
    """The caller went away."""

    kind = "cancelled"


class Unsupported(TesseraError):
    """Tessera does not do this; the message says what would work."""

    kind = "unsupported"


class Unauthenticated(TesseraError):
    kind = "unauthenticated"


class PermissionDenied(TesseraError):
    kind = "permission_denied"


class DataCorrupted(TesseraError):
    """Bytes do not have the digest they are named by."""

    kind = "data_corrupted"


class WrongGeneration(TesseraError):
    """The instance that this request was meant for is gone; rerouted once by the gateway, never shown to a client."""

    kind = "wrong_generation"
    retryable = True


def _all_kinds(base: type[TesseraError]) -> dict[str, type[TesseraError]]:
    kinds = {base.kind: base} if "kind" in base.__dict__ else {}
    for child in base.__subclasses__():
        kinds.update(_all_kinds(child))
    return kinds


def error_of(kind: str, message: str) -> TesseraError:
    """The error of a kind that came over a wire; an unknown kind becomes `Internal`.

    Subclasses with their own constructor come back as the class that owns the kind, with the message unchanged.
    """
    cls = _all_kinds(TesseraError).get(kind, Internal)
    if cls is TesseraError:
        cls = Internal
    error = cls.__new__(cls)
    TesseraError.__init__(error, message)
    return error
