"""What a backend is. One folder each; adding one touches nothing else but the table in `tessera.runtime.backends`.

Its module `backend` has `create(config) -> Backend`, and `prepare()`: what a zygote may do for all its children before it forks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy.typing as npt

from tessera.domain.artifact import ALONE, Artifact
from tessera.domain.errors import FailedPrecondition, Unsupported
from tessera.domain.ids import Digest
from tessera.tensorstore.mapping import Mapped

T = TypeVar("T")


class Tensor(NamedTuple):
    """Values between the wire and a backend.

    `datatype` is an Open Inference name. `array` is C-contiguous with numpy's dtype for it; BF16 comes as its bits in uint16, BYTES
    as an object array of `bytes`. Input arrays may be read-only views of the request.
    """

    datatype: str
    array: npt.NDArray[Any]


class BlobSource(Protocol):
    """Where a backend gets the bytes of an artifact. Everything it gives lives until the instance is unloaded."""

    def graph(self) -> bytes:
        """The artifact's graph."""
        ...

    def tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        """Slot -> read-only array over mapped memory (a private copy where sharing is off), for every `TensorRef` of the artifact."""
        ...

    def derived(self, make: Callable[[], T]) -> T:
        """What `make` makes of the bytes. Kept as long as they are, or until the instance is parked: the next load of the same bytes may
        find it there."""
        ...


@runtime_checkable
class MappedBlobs(BlobSource, Protocol):
    """A runtime's, whose files it maps."""

    def mapped(self, digest: Digest) -> Mapped:
        """A blob of the artifact where it is mapped. Raises FailedPrecondition where sharing is off: nothing is."""
        ...

    def close(self) -> None:
        """Of a donor that is spent: nothing finds what it mapped any more; what is pointed into stays."""
        ...


class BackendConfig(NamedTuple):
    """What a runtime tells its backends once, after the fork. `folder` is the runtime's own run folder."""

    threads: int
    folder: Path


class Loaded(Protocol):
    """A loaded artifact. `run` is called by one thread at a time; different instances may run at the same time."""

    inline: bool
    """True: `run` takes microseconds and may be called on the event loop."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All outputs of the signature for inputs that were validated against it.

        Raises:
            InvalidInput: shapes that the signature allows and the model does not.
            Internal: the backend failed.
        """
        ...

    def close(self) -> None:
        """Lets go of everything that points into the tensors. After it, mappings may end. Idempotent."""
        ...


@dataclass(slots=True)
class Donor:
    """An instance that becomes another one. `loaded` None: it is parked. `spent`: it can serve no more, whatever comes of the
    transformation; set before anything of it is changed."""

    artifact: Artifact
    blobs: BlobSource
    loaded: Loaded | None
    spent: bool = False


class Backend(Protocol):
    """One way to execute artifacts. Constructed in the runtime, after the fork."""

    name: str
    flavour: str

    def warm(self) -> None:
        """Runs something tiny, so that the first load finds threads, arenas and kernels there. Left out where a load comes at once."""
        ...

    def load(self, artifact: Artifact, digest: Digest, blobs: BlobSource) -> Loaded:
        """Opens an artifact. Called again with the same bytes when a parked instance, whose `Loaded` was closed, is wanted again.

        Raises:
        DataCorrupted: the graph does not fit the tensors; names the first that differs.
        Unsupported: the graph needs what this backend does not do, or an option of the artifact is unknown; names it.
        """
        ...

    def release(self) -> None:
        """Called a while after unloads, in the thread that loads: gives memory that is kept for reuse back to the system."""
        ...


@runtime_checkable
class TransformingBackend(Protocol):
    """A backend that can make what it has loaded into something else."""

    def transform(self, donor: Donor, delta: bytes, artifact: Artifact, digest: Digest, blobs: BlobSource) -> Loaded:
        """Opens an artifact out of an open one. No delta: both have one graph, and Replace is all there is to do.

        Nobody runs or closes the donor meanwhile. Until it is `spent` it is as it was; a spent one has gone into the other one, or is of no
        use to anybody. Whoever is refused or interrupted has it still, or it is gone.

        Raises:
        DataCorrupted, Unsupported: as `Backend.load`.
        InvalidInput, FailedPrecondition: the delta is none, does not fit, or is from or to another graph; or this donor cannot become this
            artifact; says why.
        """
        ...


def refuse_another_graph(donor: Donor, artifact: Artifact) -> None:
    """Raises: FailedPrecondition: donor and artifact do not share their graph."""
    here, there = (each.graph.digest[:12] if each.graph is not None else "none" for each in (donor.artifact, artifact))
    if donor.artifact.graph != artifact.graph:
        raise FailedPrecondition(f"graph {here} cannot become {there} without a delta")


def refuse_unknown_options(artifact: Artifact, *known: str) -> None:
    """Raises: Unsupported, naming the first of the artifact's options that is neither among `known` nor the runtime's own."""
    for option in artifact.options:
        if option not in (*known, ALONE):
            raise Unsupported(f"option {option!r} of the artifact: backend {artifact.backend} knows {', '.join(known) or 'none'}")
