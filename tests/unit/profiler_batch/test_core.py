"""The pure parts of batch jobs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import DataCorrupted, FailedPrecondition, Internal, InvalidInput, PermissionDenied
from tessera.domain.ids import InstanceId, NodeId, TrustDomain
from tessera.domain.records import BatchState, LoadRecord, LoadState
from tessera.domain.signature import TensorSpec
from tessera.profiler.batch.core import checkpoint
from tessera.profiler.batch.core.answers import Answers, Segment, segment_of
from tessera.profiler.batch.core.checkpoint import InputVersion, Manifest, PartNote, RowError, finished, part_range, part_rows_for
from tessera.profiler.batch.core.locations import Location, Output, check_allowed, format_of, location, roots_of
from tessera.profiler.batch.core.pausing import Look, look
from tessera.profiler.batch.core.rows import Chunk, check_column, chunks_of, row_specs, value_of
from tessera.profiler.batch.core.states import ENDED, forgotten, next_job, step
from tessera.testing.builders import a_batch, a_signature, a_variant_key

LAB = TrustDomain("lab")
IMAGE = TensorSpec("image", "FP32", (1, 2, 2))


# States


def test_an_ended_job_stays_as_it_is() -> None:
    for state in ENDED:
        for then in BatchState:
            with pytest.raises(FailedPrecondition, match=f"does not go from {state} to {then}"):
                step(a_batch(state=state), then, 1.0)


def test_a_job_knows_when_it_began_and_ended() -> None:
    job = step(a_batch(), BatchState.RUNNING, 10.0)
    job = step(job, BatchState.PAUSED, 20.0, "busy")
    assert (job.reason, job.started_unix_s, job.ended_unix_s) == ("busy", 10.0, 0.0)
    job = step(step(job, BatchState.RUNNING, 30.0), BatchState.DONE, 40.0)
    assert (job.reason, job.started_unix_s, job.ended_unix_s) == ("", 10.0, 40.0)


def test_what_was_begun_goes_on_before_what_waits_and_cancelling_comes_first() -> None:
    first, second = a_batch("b1", submitted_unix_s=1.0), a_batch("b2", submitted_unix_s=2.0)
    assert next_job([second, first]) == first
    begun = a_batch("b3", submitted_unix_s=3.0, state=BatchState.PAUSED)
    assert next_job([first, begun, second]) == begun
    cancelling = a_batch("b4", submitted_unix_s=4.0, state=BatchState.RUNNING, cancelling=True)
    assert next_job([first, begun, cancelling]) == cancelling
    assert next_job([a_batch(state=BatchState.DONE)]) is None


def test_only_the_oldest_ended_jobs_are_forgotten() -> None:
    ended = [a_batch(f"b{n}", state=BatchState.DONE, ended_unix_s=float(n)) for n in range(4)]
    assert [job.job_id for job in forgotten([*ended, a_batch("b9")], 2)] == ["b1", "b0"]


# Pausing


def a_load(state: LoadState, instance: str = "i1") -> LoadRecord:
    return LoadRecord(InstanceId(instance), NodeId("n1"), a_variant_key(), state, 0.0, "42 of 40 a second")


def test_a_busy_instance_pauses_at_once_and_calm_must_last() -> None:
    seen = look(Look(), [], 0.0, 5.0)
    assert not seen.paused
    seen = look(seen, [a_load(LoadState.OVERLOADED), a_load(LoadState.INTERFERED, "i2")], 1.0, 5.0)
    assert seen.reason == "instance i1 of digits@1/aten-fp32 on n1 is overloaded (and 1 more): 42 of 40 a second"
    seen = look(seen, [], 2.0, 5.0)
    assert look(seen, [], 6.9, 5.0).paused
    assert not look(seen, [], 7.0, 5.0).paused


def test_a_load_around_the_threshold_does_not_switch_the_job_on_and_off() -> None:
    seen, switches = Look(), 0
    for second in range(60):
        before, seen = seen, look(seen, [a_load(LoadState.OVERLOADED)] if second % 4 < 2 else [], float(second), 5.0)
        switches += before.paused != seen.paused
    assert switches == 1


def test_an_active_instance_pauses_nobody() -> None:
    assert not look(Look(), [a_load(LoadState.ACTIVE)], 0.0, 5.0).paused


# Locations


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("/srv/a.npz", Location("file", "/srv/a.npz")),
        ("file:///srv/a.npz", Location("file", "/srv/a.npz")),
        ("local:///srv/a/", Location("file", "/srv/a")),
        ("s3://bucket/in/a.jsonl", Location("s3", "bucket/in/a.jsonl")),
    ],
)
def test_urls_are_read(url: str, found: Location) -> None:
    assert location("input_url", url) == found


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.npz",
        "file://a.npz",
        "/srv/../etc/passwd",
        "s3://b/../c",
        "/srv//a",
        "simplecache::s3://b/a",
        "zip://a::/srv/b",
        "/a\nb",
        "x" * 3000,
    ],
)
def test_urls_that_could_lead_elsewhere_are_refused_by_name(url: str) -> None:
    with pytest.raises(InvalidInput, match="input_url"):
        location("input_url", url)


def test_only_what_lies_below_a_root_of_the_domain_is_allowed() -> None:
    roots = roots_of(LAB, "/srv/batch", ["s3://bucket/jobs", "/data/{trust_domain}"])
    for url in ("/srv/batch/lab/a.npz", "s3://bucket/jobs/x/a.npz", "/data/lab/a"):
        check_allowed("input_url", location("input_url", url), roots)
    for url in (
        "/srv/batch/other/a.npz",
        "/srv/batch/lab2/a",
        "/srv/batch/lab",
        "s3://bucket/jobs2/a",
        "s3://bucket",
        "/data/other/a",
        "/etc/passwd",
    ):
        with pytest.raises(PermissionDenied, match="batch roots: file:///srv/batch/lab, s3://bucket/jobs, file:///data/lab"):
            check_allowed("input_url", location("input_url", url), roots)
    with pytest.raises(PermissionDenied, match="none is configured"):
        check_allowed("input_url", location("input_url", "/a/b"), ())


def test_the_format_is_stated_or_the_suffix() -> None:
    assert format_of("input", Location("file", "/a.parquet"), "") == "parquet"
    assert format_of("output", Location("file", "/a"), "jsonl") == "jsonl"
    assert format_of("output", Location("file", "/a"), "", "npz") == "npz"
    for place, stated in ((Location("file", "/a.csv"), ""), (Location("file", "/a"), "csv"), (Location("file", "/a.npz"), "jsonl")):
        with pytest.raises(InvalidInput, match="input_"):
            format_of("input", place, stated)


def test_a_file_has_its_parts_beside_it_and_a_folder_inside() -> None:
    single, folder = Output(location("o", "s3://b/x.npz"), "npz"), Output(location("o", "/srv/x"), "jsonl")
    assert (str(single.part(3)), str(single.final_manifest)) == ("s3://b/x.npz.parts/part-00003.npz", "s3://b/x.npz.manifest.json")
    assert (str(folder.note(12)), str(folder.final_manifest)) == ("file:///srv/x/part-00012.json", "file:///srv/x/manifest.json")
    assert folder.working_manifest == folder.final_manifest
    assert [Output.is_own(name) for name in ("manifest.json", "part-00001.npz", "part-123456.json", "data.npz", "part-1.npz")] == [
        True, True, True, False, False,
    ]  # fmt: skip


# Checkpoints


def a_manifest(**fields: Any) -> Manifest:
    values: dict[str, Any] = {
        "job_id": "b1", "model": "digits", "input_url": "file:///a.npz", "input_format": "npz", "input": InputVersion(10, "1"),
        "output_format": "npz", "rows": 10, "part_rows": 4,
    }  # fmt: skip
    return Manifest(**{**values, **fields})


def test_manifests_and_notes_come_back_as_they_went() -> None:
    note = PartNote(0, 0, 4, 99, "ab", (RowError(2, "invalid_input", "no"),))
    done = a_manifest(done=True, parts=(note,))
    assert checkpoint.decode(Manifest, checkpoint.encode(done), "here") == done
    assert checkpoint.decode(PartNote, checkpoint.encode(note), "here") == note
    for data in (b"", b"{}", checkpoint.encode(note), checkpoint.encode(a_manifest(layout=2))):
        with pytest.raises(DataCorrupted, match="here"):
            checkpoint.decode(Manifest, data, "here")


def test_a_checkpoint_is_gone_on_with_only_for_the_same_question() -> None:
    assert a_manifest().why_not_continued(a_manifest(job_id="b2", part_rows=0)) == ""
    assert a_manifest().why_not_continued(a_manifest(model="other")) == "its model was digits, now it is other"
    was, now = a_manifest(model="digits@1"), a_manifest(model="digits@2")
    assert was.why_not_continued(now) == (
        "its model was digits@1, now it is digits@2; name digits@1 to go on there, or begin anew with overwrite"
    )
    assert was.why_not_continued(a_manifest(model="digits@2", rows=9)) == (
        "its model was digits@1, now it is digits@2; its rows was 10, now it is 9"
    )
    assert "input's version" in a_manifest().why_not_continued(a_manifest(input=InputVersion(10, "2")))


def notes_of(count: int, part_rows: int, rows: int) -> dict[int, PartNote]:
    ranges = [part_range(number, part_rows, rows) for number in range(count)]
    return {number: PartNote(number, first, some, 100 + number, "ab") for number, (first, some) in enumerate(ranges)}


def test_parts_count_up_to_the_first_gap() -> None:
    notes = notes_of(3, 4, 10)
    sizes = {0: 100, 1: 101, 2: 102}
    assert [note.rows for note in finished(notes, sizes, 4, 10)] == [4, 4, 2]
    assert len(finished(notes, {**sizes, 1: 7}, 4, 10)) == 1, "a part of another size is made again, and all behind it"
    assert len(finished(notes, {0: 100, 2: 102}, 4, 10)) == 1
    assert finished(notes, sizes, 5, 10) == (), "of a job that was cut otherwise"


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 200), st.integers(0, 10_000), st.integers(1, 100_000))
def test_parts_cover_every_row_once(rows: int, batch: int, most_rows: int, row_bytes: int, most_bytes: int) -> None:
    part_rows = part_rows_for(row_bytes * batch, batch, batch, most_rows, most_bytes)
    assert part_rows % batch == 0
    assert part_rows == batch or (part_rows <= most_rows and part_rows * row_bytes <= most_bytes)
    covered: list[int] = []
    number = 0
    while (found := part_range(number, part_rows, rows))[1]:
        covered += range(found[0], sum(found))
        number += 1
    assert covered == list(range(rows))


# Rows


@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        ("float64", (3, 1, 2, 2), "array image dtype 'float64': must be float32"),
        ("object", (3, 1, 2, 2), "dtype 'object'"),
        ("float32", (), "must have rows in dimension 0"),
        ("float32", (3, 2, 2), r"array image shape \[3, 2, 2\]: must be \['rows', 1, 2, 2\]"),
    ],
)
def test_an_array_that_does_not_fit_is_named(dtype: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_column(IMAGE, np.dtype(dtype), shape)


def test_big_endian_arrays_fit() -> None:
    check_column(IMAGE, np.dtype(">f4"), (3, 1, 2, 2))


@pytest.mark.parametrize(
    ("datatype", "value", "words"),
    [
        ("INT64", [1.5, 2.0], "must be int64"),
        ("INT8", [1, 300], "beyond int8"),
        ("UINT32", [-1, 0], "beyond uint32"),
        ("UINT64", [-1, 1 << 63], "out of bounds for uint64"),
        ("UINT64", [1.0, 2.0], "must be uint64"),
        ("INT64", [True, False], "must be int64"),
        ("FP32", ["a", "b"], "must be float32"),
        ("FP32", [[1.0], [1.0, 2.0]], "is no tensor"),
        ("FP32", [1.0, 2.0, 3.0], r"shape \[3\]: must be \[2\]"),
        ("BYTES", [1, 2], "must be texts"),
        ("FP32", None, "is missing"),
        ("FP32", [None, 1.0], "must be float32"),
    ],
)
def test_a_value_is_never_bent_into_shape(datatype: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        value_of(TensorSpec("x", datatype, (2,)), value)


def test_values_become_tensors() -> None:
    assert value_of(IMAGE, [1, 2, 3, 4]).shape == (1, 2, 2), "a flat list is given the fixed shape"
    assert value_of(IMAGE, [1, 2, 3, 4]).dtype == np.float32
    assert value_of(TensorSpec("ids", "INT64", (-1,)), [1, 2]).dtype == np.int64
    assert value_of(TensorSpec("ids", "INT64", (-1,)), []).shape == (0,)
    for datatype in ("UINT64", "ANY"):
        assert value_of(TensorSpec("ids", datatype, (-1,)), [1, (1 << 63) + 1]).tolist() == [1, (1 << 63) + 1]
    assert list(value_of(TensorSpec("t", "BYTES", (2,)), ["a", b"\xff"])) == ["a", b"\xff"]


def test_rows_of_one_shape_travel_together() -> None:
    spec = TensorSpec("ids", "INT64", (-1,))
    rows = [{"ids": value_of(spec, list(range(length)))} for length in (2, 2, 3, 2)]
    portion = chunks_of(10, [*rows[:2], RowError(12, "invalid_input", "bad"), *rows[2:]])
    assert [(chunk.first, chunk.rows) for chunk in portion.chunks] == [(10, 2), (13, 1), (14, 1)]
    assert (portion.rows, [error.row for error in portion.errors]) == (5, [12])


def test_the_batch_is_no_dimension_of_a_row() -> None:
    assert row_specs(a_signature())[0].shape == (1, 8, 8)
    assert row_specs(a_signature(batched=False))[0].shape == (-1, 1, 8, 8)


# Answers


def test_answers_are_put_in_the_order_of_the_rows_whatever_came_first() -> None:
    answers = Answers(10, 5, errors=[RowError(12, "invalid_input", "bad")])
    answers.segments = [Segment(13, 2, {"y": np.array([3.0, 4.0])}), Segment(10, 2, {"y": np.array([0.0, 1.0])})]
    answers.check_complete()
    assert [None if row is None else float(row) for row in answers.by_row("y")] == [0.0, 1.0, None, 3.0, 4.0]
    np.testing.assert_array_equal(answers.column("y"), [0.0, 1.0, np.nan, 3.0, 4.0])


def test_a_row_that_is_missing_or_there_twice_is_found() -> None:
    for segments in ([], [Segment(0, 2, {}), Segment(1, 1, {})]):
        with pytest.raises(Internal, match="not one each"):
            Answers(0, 2, segments=segments).check_complete()


def test_an_answer_with_too_few_rows_is_refused() -> None:
    chunk = Chunk(0, 2, {"x": np.zeros((2, 3))})
    with pytest.raises(Internal, match=r"output y of shape \[1\] answers 2 rows"):
        segment_of(chunk, {"y": np.zeros(1)}, True)
    assert segment_of(Chunk(0, 1, {}), {"y": np.zeros(4)}, False).outputs["y"].shape == (1, 4)


def test_npz_says_what_holds_what_it_cannot() -> None:
    ragged = Answers(0, 2, segments=[Segment(0, 1, {"y": np.zeros((1, 2))}), Segment(1, 1, {"y": np.zeros((1, 3))})])
    with pytest.raises(InvalidInput, match=r"output y: has rows of shapes \[2\] and \[3\].*jsonl and parquet can"):
        ragged.column("y")
    texts = Answers(0, 1, segments=[Segment(0, 1, {"y": np.array([b"a"], dtype=object)})])
    with pytest.raises(InvalidInput, match="npz cannot hold texts"):
        texts.column("y")


def test_a_chunk_is_halved_until_one_row_is_left() -> None:
    chunk = Chunk(4, 3, {"x": np.arange(3)})
    left, right = chunk.halves()
    assert [(half.first, half.rows, half.inputs["x"].tolist()) for half in (left, right)] == [(4, 1, [0]), (5, 2, [1, 2])]
