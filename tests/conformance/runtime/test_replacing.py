"""Replace on what is open: a donor becomes another artifact of its graph, or is as it was, or is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tessera import failpoint
from tessera.domain.artifact import PREPACKED
from tessera.domain.errors import FailedPrecondition, Internal, TesseraError
from tessera.domain.ids import Digest
from tessera.runtime.backends.interface import Donor
from tessera.runtime.blobs import ArtifactBlobs
from tessera.runtime.overlay import address_of
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.seal import seal

BACKENDS = ("aten", "ort", "aoti")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
swaps = pytest.mark.parametrize("backend", ["ort", "aoti"])
"""Those that change what is open; `aten` makes a program of its own beside it."""


@pytest.fixture
def pair(models, sibling, store):
    """Two artifacts of one graph. AOTInductor's libraries have the path in them where they were compiled: the second one is the first one
    with the sibling's tensors."""

    def get(backend):
        first = models["bert"].artifacts[backend]
        if backend != "aoti":
            return first, sibling[backend]
        other = read(store, sibling["aten"])
        tensors = {ref.slot: ref for ref in other.tensors}
        made = read(store, first)
        return first, write(store, replace(made, pack=other.pack, tensors=tuple(tensors[ref.slot] for ref in made.tensors)))

    return get


@pytest.fixture
def become(backend_of, store):
    """(donor, artifact) -> what it became; the donor ends as it would in a runtime."""
    opened = []

    def get(there, digest, donor=None):
        artifact = read(store, digest)
        blobs = ArtifactBlobs(store, artifact, there.blobs._mapped, False, False)
        opened.append(blobs)
        donor = donor or Donor(there.artifact, there.blobs, there.loaded)
        found = replace(there, artifact=artifact, blobs=blobs)
        found = replace(found, loaded=backend_of(artifact.backend).transform(donor, b"", artifact, Digest(digest), blobs))
        opened.append(found)
        there.close()
        return found

    yield get
    for item in reversed(opened):
        item.close()


def read(store: Path, digest: str):
    return artifacts.decode((store / "blobs" / digest).read_bytes())


def write(store: Path, artifact) -> str:
    data = artifacts.encode(artifact)
    digest = artifacts.digest_of(data)
    path = store / "blobs" / digest
    if not path.exists():
        path.write_bytes(data)
        seal(path, digest)
    return digest


def bits(opened, inputs) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in opened.run(inputs).items()}


def answers_of(open_artifact, digest, inputs) -> dict[str, bytes]:
    opened = open_artifact(digest)
    found = bits(opened, inputs)
    opened.close()
    return found


@each_backend
def test_a_donor_answers_as_a_fresh_load_of_what_it_became(backend, models, pair, open_artifact, become):
    first, second = pair(backend)
    inputs = models["bert"].inputs(3, 5)
    fresh = {digest: answers_of(open_artifact, digest, inputs) for digest in (first, second)}
    assert fresh[first] != fresh[second]
    at = open_artifact(first)
    for digest in (second, first, second):
        at = become(at, digest)
        assert bits(at, inputs) == fresh[digest]
    again = open_artifact(first)
    assert (bits(again, inputs), bits(at, inputs)) == (fresh[first], fresh[second])


@each_backend
def test_of_another_graph_nothing_is_made(backend, models, pair, open_artifact, become, store):
    first, second = pair(backend)
    made = read(store, second)
    other = write(store, replace(made, graph=replace(made.graph, digest=models["resnet18"].artifacts["aten"])))
    refused(models, become, open_artifact(first), other, r"graph \w{12} cannot become \w{12} without a delta")


def refused(models, become, opened, digest, words) -> None:
    inputs = models["bert"].inputs(2, 5)
    before = bits(opened, inputs)
    donor = Donor(opened.artifact, opened.blobs, opened.loaded)
    with pytest.raises(FailedPrecondition, match=words):
        become(opened, digest, donor)
    assert not donor.spent
    assert bits(opened, inputs) == before


def test_what_is_prepacked_reads_copies(models, pair, open_artifact, become, store):
    plain, packed = (
        [write(store, replace(read(store, digest), options=options)) for digest in pair("ort")] for options in ((), (PREPACKED,))
    )
    refused(models, become, open_artifact(packed[0]), packed[1], "prepacked weights are copies")
    refused(models, become, open_artifact(packed[0]), plain[1], "prepacked weights are copies")
    refused(models, become, open_artifact(plain[0]), packed[1], "prepacked weights are copies")


def test_who_shares_what_would_change_keeps_it(models, pair, open_artifact, become):
    first, second = pair("ort")
    inputs = models["bert"].inputs(2, 5)
    other = open_artifact(first)
    before = bits(other, inputs)
    opened = open_artifact(first)
    refused(models, become, opened, second, r"blob \w{64} is mapped for others too")
    assert bits(other, inputs) == before
    other.close()
    assert bits(become(opened, second), inputs) == answers_of(open_artifact, second, inputs)


def test_private_memory_is_not_mapped_over(models, pair, open_artifact, become):
    first, second = pair("ort")
    refused(models, become, open_artifact(first, private=True), second, "sharing is off")


@swaps
def test_a_parked_one_has_nothing_to_swap(backend, pair, open_artifact, become):
    first, second = pair(backend)
    opened = open_artifact(first)
    opened.loaded.close()
    with pytest.raises(FailedPrecondition, match="the donor is parked"):
        become(opened, second)


def test_tensors_that_lie_elsewhere_are_not_swapped(models, pair, open_artifact, become, store):
    """One of the same graph whose tensors are tied otherwise, or packed otherwise."""
    first, second = pair("ort")
    made = read(store, second)
    large = [place for place, ref in enumerate(made.tensors) if ref.pack_offset is None]
    one, two = next((one, two) for one in large for two in large if one < two and made.tensors[one].shape == made.tensors[two].shape)
    tied = list(made.tensors)
    tied[two] = replace(tied[two], digest=tied[one].digest)
    refused(
        models, become, open_artifact(first), write(store, replace(made, tensors=tuple(tied))), "share their bytes in the other artifact"
    )
    small = [place for place, ref in enumerate(made.tensors) if ref.pack_offset is not None]
    moved = list(made.tensors)
    one, two = next((one, two) for one in small for two in small if one < two and moved[one].size_bytes == moved[two].size_bytes)
    moved[one], moved[two] = (replace(moved[at], pack_offset=moved[of].pack_offset) for at, of in ((one, two), (two, one)))
    refused(models, become, open_artifact(first), write(store, replace(made, tensors=tuple(moved))), "lies elsewhere in the other artifact")


@pytest.mark.parametrize(("backend", "after"), [("ort", 0), ("ort", 1), ("aoti", 0)])
def test_one_that_fails_half_way_is_gone(backend, after, models, pair, open_artifact, become):
    """The library of `aoti` takes all its constants in one call."""
    first, second = pair(backend)
    inputs = models["bert"].inputs(2, 5)
    fresh = {digest: answers_of(open_artifact, digest, inputs) for digest in (first, second)}
    opened = open_artifact(first)
    donor = Donor(opened.artifact, opened.blobs, opened.loaded)
    with failpoint.active(f"runtime.replace={after}*off->1*error(no more mappings)"), pytest.raises(TesseraError, match="no more mappings"):
        become(opened, second, donor)
    assert donor.spent
    with pytest.raises(Internal, match="closed"):
        opened.run(inputs)
    opened.close()
    for digest in (first, second):
        assert answers_of(open_artifact, digest, inputs) == fresh[digest], "nobody finds the other one's bytes under this one's name"


def test_what_was_mapped_over_is_let_go_of_at_the_end(store, pair, open_artifact, become):
    first, second = pair("ort")
    files = {ref.digest for ref in read(store, second).large_tensors()}

    def mappings():
        lines = Path("/proc/self/maps").read_text()
        return {digest: lines.count(digest) for digest in files}, lines

    before, _ = mappings()
    opened = open_artifact(first)
    seats = [address_of(opened.blobs.mapped(ref.digest).view) for ref in opened.artifact.large_tensors()]
    made = become(opened, second)
    there, lines = mappings()
    assert all(f"{seat:x}-" in lines for seat in seats)
    assert there == {digest: count + 2 for digest, count in before.items()}, "as the store has it, and where the session reads it"
    made.close()
    assert mappings()[0] == before


@each_backend
def test_nothing_stays_mapped_of_what_was_closed(backend, store, models, pair, open_artifact, become):
    first, second = pair(backend)
    files = {ref.digest for digest in (first, second) for ref in read(store, digest).large_tensors()}
    opened = open_artifact(first)
    bits(opened, models["bert"].inputs(1, 5))
    become(opened, second).close()
    lines = Path("/proc/self/maps").read_text()
    assert not [digest for digest in files if digest in lines]
