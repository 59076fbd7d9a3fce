"""Formats and storage on real files: what is written comes back, what is damaged is named, what is broken off leaves nothing."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tessera.domain.errors import DataCorrupted, InvalidInput, NotFound, PermissionDenied, Unavailable
from tessera.domain.signature import Signature, TensorSpec
from tessera.profiler.batch.adapters.formats import file_format
from tessera.profiler.batch.adapters.npz import MAX_READ_BYTES
from tessera.profiler.batch.adapters.storage import FsspecStorage
from tessera.profiler.batch.core.answers import Answers, Segment
from tessera.profiler.batch.core.checkpoint import PartNote, RowError
from tessera.profiler.batch.core.locations import location
from tessera.testing.builders import a_signature

TEXTS = Signature((TensorSpec("text", "BYTES", (-1, 1)), TensorSpec("ids", "INT64", (-1, -1))), ())
OUTPUTS: list[dict[str, Any]] = [
    {"label": np.arange(4, dtype=np.int64), "logits": np.arange(12, dtype=np.float32).reshape(4, 3)},
    {"label": np.arange(4, 7, dtype=np.int64), "logits": np.arange(9, dtype=np.float32).reshape(3, 3)},
]


def opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def images(rows: int) -> Any:
    return np.random.default_rng(1).standard_normal((rows, 1, 8, 8), dtype=np.float32)


def save(folder: Path, kind: str, rows: int) -> tuple[Path, Any]:
    data, path = images(rows), folder / f"in.{kind}"
    if kind == "npz":
        np.savez_compressed(path, image=data.astype(">f4"))
    elif kind == "jsonl":
        path.write_text("\n\n".join(json.dumps({"image": row.tolist(), "other": 1}) for row in data) + "\n")
    else:
        pq.write_table(pa.table({"image": [row.ravel().tolist() for row in data], "other": list(range(rows))}), path, row_group_size=4)
    return path, data


def read_all(source: Any, size: int, first: int = 0) -> Any:
    """Every row from `first` on, `size` at a time."""
    found, at = [], first
    while at < source.rows:
        portion = source.read(at, size)
        assert not portion.errors
        found += [chunk.inputs["image"] for chunk in portion.chunks]
        at += portion.rows
    return np.concatenate(found)


@pytest.mark.parametrize("kind", ["npz", "jsonl", "parquet"])
def test_rows_are_read_in_pieces_from_anywhere(kind: str, tmp_path: Path) -> None:
    path, data = save(tmp_path, kind, 11)
    source = file_format(kind).open_source(opener(path), a_signature(), True)
    assert source.rows == 11
    for size, first in ((3, 0), (11, 0), (2, 5), (4, 1), (1, 9)):
        np.testing.assert_array_equal(read_all(source, size, first), data[first:])
    source.close()


def parts_of(kind: str) -> tuple[list[PartNote], Callable[[PartNote], bytes]]:
    """Two parts of seven rows, row 2 of which failed, and a third whose two rows all failed."""
    written = file_format(kind)
    first = Answers(0, 4, errors=[RowError(2, "invalid_input", "bad")])
    first.segments = [
        Segment(at, rows, {name: array[at : at + rows] for name, array in OUTPUTS[0].items()}) for at, rows in ((3, 1), (0, 2))
    ]
    second = Answers(4, 3, segments=[Segment(4, 3, OUTPUTS[1])])
    third = Answers(7, 2, errors=[RowError(7, "internal", "x"), RowError(8, "internal", "y")])
    data = [written.encode(answers) for answers in (first, second, third)]
    notes = [PartNote(number, a.first, a.rows, len(data[number]), "") for number, a in enumerate((first, second, third))]
    return notes, lambda note: data[note.part]


def joined(kind: str) -> bytes:
    notes, read = parts_of(kind)
    target = io.BytesIO()
    for _ in file_format(kind).join(target, notes, read):
        pass
    return target.getvalue()


def test_npz_parts_become_one_file_with_nan_for_what_failed() -> None:
    with np.load(io.BytesIO(joined("npz")), allow_pickle=False) as found:
        np.testing.assert_array_equal(found["label"], [0, 1, 0, 3, 4, 5, 6, 0, 0])
        assert found["logits"].shape == (9, 3)
        assert [bool(np.isnan(row).all()) for row in found["logits"]] == [False, False, True, False, False, False, False, True, True]
        np.testing.assert_array_equal(found["logits"][3], OUTPUTS[0]["logits"][3])


def test_jsonl_parts_become_one_file_with_words_for_what_failed() -> None:
    lines = [json.loads(line) for line in joined("jsonl").splitlines()]
    assert lines[2] == {"_error": {"kind": "invalid_input", "message": "bad"}}
    assert lines[8] == {"_error": {"kind": "internal", "message": "y"}}
    assert [line["label"] for line in lines if "label" in line] == [0, 1, 3, 4, 5, 6]
    assert lines[4]["logits"] == [0.0, 1.0, 2.0]


def test_parquet_parts_become_one_file_with_nothing_for_what_failed() -> None:
    table = pq.read_table(io.BytesIO(joined("parquet")))
    assert table.column("label").to_pylist() == [0, 1, None, 3, 4, 5, 6, None, None]
    assert table.column("logits").to_pylist()[2:5] == [None, [9.0, 10.0, 11.0], [0.0, 1.0, 2.0]]
    assert table.column("_error").to_pylist()[1:3] == [None, "invalid_input: bad"]
    assert table.schema.field("label").type == pa.int64()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_texts_and_rows_of_their_own_lengths_come_through(kind: str, tmp_path: Path) -> None:
    rows = [{"text": ["häuser"], "ids": [1, 2]}, {"text": ["b"], "ids": [3]}, {"text": [""], "ids": []}]
    path = tmp_path / "in"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    source = file_format(kind).open_source(opener(path), TEXTS, True)
    portion = source.read(0, 9)
    source.close()
    assert [(chunk.first, chunk.rows, chunk.inputs["ids"].shape) for chunk in portion.chunks] == [
        (0, 1, (1, 2)),
        (1, 1, (1, 1)),
        (2, 1, (1, 0)),
    ]
    segments = [Segment(chunk.first, chunk.rows, dict(chunk.inputs)) for chunk in portion.chunks]
    data = file_format(kind).encode(Answers(0, 3, segments=segments))
    (tmp_path / "out").write_bytes(data)
    again = file_format(kind).open_source(opener(tmp_path / "out"), TEXTS, True)
    for before, after in zip(portion.chunks, again.read(0, 9).chunks, strict=True):
        for name in ("text", "ids"):
            as_text = [v.decode() if isinstance(v, bytes) else v for v in after.inputs[name].ravel().tolist()]
            assert as_text == before.inputs[name].ravel().tolist()
    again.close()


def test_bytes_that_are_no_text_pass_through_json() -> None:
    raw = np.array([[b"\xff\x00"]], dtype=object)
    data = file_format("jsonl").encode(Answers(0, 1, segments=[Segment(0, 1, {"text": raw, "ids": np.zeros((1, 1), np.int64)})]))
    assert json.loads(data) == {"text": [{"base64": "/wA="}], "ids": [0]}
    source = file_format("jsonl").open_source(lambda: io.BytesIO(data), TEXTS, True)
    assert source.read(0, 1).chunks[0].inputs["text"].tolist() == [[b"\xff\x00"]]
    source.close()


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    data = file_format("jsonl").encode(Answers(0, 1, segments=[Segment(0, 1, {"y": np.array([[np.nan, np.inf, 1.0]])})]))
    assert json.loads(data) == {"y": [None, None, 1.0]}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_bad_row_does_not_spoil_its_neighbours(kind: str, tmp_path: Path) -> None:
    good, path = {"image": [0.5] * 64}, tmp_path / "in"
    if kind == "jsonl":
        path.write_text("\n".join([json.dumps(good), "{no json", json.dumps({"image": ["a"]}), json.dumps({}), "[1]", json.dumps(good)]))
    else:
        pq.write_table(pa.table({"image": [[0.5] * 64, [0.5], None, [None] * 64, [], [0.5] * 64]}), path)
    source = file_format(kind).open_source(opener(path), a_signature(), True)
    portion = source.read(0, 6)
    source.close()
    assert (portion.rows, [(chunk.first, chunk.rows) for chunk in portion.chunks]) == (6, [(0, 1), (5, 1)])
    assert [error.row for error in portion.errors] == [1, 2, 3, 4]


@pytest.mark.parametrize("depth", [100, 600, 100_000])
@pytest.mark.parametrize("value", ["{nest}", '{{"image": {nest}}}', '{{"image": {{"base64": {nest}}}}}'])
def test_a_line_that_is_nested_too_deep_is_an_error_of_its_row(value: str, depth: int) -> None:
    good = json.dumps({"image": [0.5] * 64})
    deep = value.format(nest="[" * depth + "]" * depth)
    data = f"{good}\n{deep}\n{good}\n".encode()
    with closing(file_format("jsonl").open_source(lambda: io.BytesIO(data), a_signature(), True)) as source:
        portion = source.read(0, 3)
    assert [(chunk.first, chunk.rows) for chunk in portion.chunks] == [(0, 1), (2, 1)]
    assert [(error.row, error.kind) for error in portion.errors] == [(1, "invalid_input")]


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_damaged_file_is_named(kind: str, tmp_path: Path) -> None:
    path, _ = save(tmp_path, kind, 200)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 64] = b"\xff" * 64
    path.write_bytes(data)
    with (
        pytest.raises(DataCorrupted, match=r"damaged near row|no npz|no parquet"),
        closing(file_format(kind).open_source(opener(path), a_signature(), True)) as source,
    ):
        read_all(source, 8)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataCorrupted, match=f"is no {kind} file"):
        file_format(kind).open_source(opener(path), a_signature(), True)


def test_an_array_that_ends_early_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    np.save(whole, images(10))
    with zipfile.ZipFile(tmp_path / "in.npz", "w") as archive:
        archive.writestr("image.npy", whole.getvalue()[:-100])
    source = file_format("npz").open_source(opener(tmp_path / "in.npz"), a_signature(), True)
    with pytest.raises(DataCorrupted, match=r"damaged near row 8: array image ends early"):
        read_all(source, 8)
    source.close()


def test_a_small_file_that_unpacks_to_a_huge_row_is_refused_before_it_is(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1, MAX_READ_BYTES)})
    with zipfile.ZipFile(tmp_path / "in.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header.getvalue())
    loose = Signature((TensorSpec("image", "FP32", (-1, -1)),), ())
    with pytest.raises(InvalidInput, match=f"must be at most {MAX_READ_BYTES}"):
        file_format("npz").open_source(opener(tmp_path / "in.npz"), loose, True)


def test_arrays_stored_by_columns_say_what_to_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", image=np.asfortranarray(images(3)))
    with pytest.raises(InvalidInput, match=r"array image: is stored by columns: save numpy\.ascontiguousarray"):
        file_format("npz").open_source(opener(tmp_path / "in.npz"), a_signature(), True)


# Storage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def storage(root: Path) -> FsspecStorage:
    return FsspecStorage([location("root", str(root))], {})


def test_files_appear_whole_and_are_found_again(storage: FsspecStorage, root: Path) -> None:
    place = location("x", str(root / "new" / "folder" / "a.bin"))
    assert storage.version(place) is None
    storage.put(place, b"first")
    before = storage.version(place)
    storage.put(place, b"other")
    assert storage.version(place) != before, "a file of the same length is told apart"
    assert storage.read(place) == b"other"
    assert storage.names(location("x", str(root / "new" / "folder"))) == {"a.bin": 5}
    storage.remove(location("x", str(root / "new" / "folder")), ["a.bin", "absent"])
    assert not (root / "new" / "folder").exists()
    assert storage.names(location("x", str(root / "new" / "folder"))) == {}


def test_a_write_that_is_broken_off_leaves_what_was_there(storage: FsspecStorage, root: Path) -> None:
    place = location("x", str(root / "a.bin"))
    storage.put(place, b"old")

    def pieces(file: BinaryIO) -> Iterator[None]:
        file.write(b"new")
        yield
        file.write(b"newer")
        yield

    writing = storage.write(place, pieces)
    next(writing)
    writing.close()  # type: ignore[attr-defined] # a generator
    assert (storage.read(place), sorted(os.listdir(root))) == (b"old", ["a.bin"])

    def broken(file: BinaryIO) -> Iterator[None]:
        file.write(b"new")
        yield
        raise InvalidInput("output", None, "cannot be written")

    with pytest.raises(InvalidInput, match="cannot be written"):
        list(storage.write(place, broken))
    assert (storage.read(place), sorted(os.listdir(root))) == (b"old", ["a.bin"])


def test_size_and_digest_are_those_of_the_file(storage: FsspecStorage, root: Path) -> None:
    from blake3 import blake3

    def pieces(file: BinaryIO) -> Iterator[None]:
        file.write(b"ab")
        yield
        file.write(memoryview(np.arange(3, dtype=np.int32)))
        yield

    *_, (size, digest) = storage.write(location("x", str(root / "a.bin")), pieces)  # type: ignore[misc] # the last is no None
    data = (root / "a.bin").read_bytes()
    assert (size, digest) == (14, blake3(data).hexdigest())


def test_links_pipes_and_folders_are_no_files(storage: FsspecStorage, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    (root / "up").symlink_to(tmp_path)
    for name, error in (("link", PermissionDenied), ("pipe", PermissionDenied), ("up/secret", PermissionDenied), ("absent", NotFound)):
        with pytest.raises(error):
            storage.open(location("x", str(root / name)))
    with pytest.raises((PermissionDenied, InvalidInput)):
        storage.open(location("x", str(root / "folder")))
    assert storage.version(location("x", str(root / "folder"))) is None
    with pytest.raises(PermissionDenied):
        storage.put(location("x", str(root / "up" / "new")), b"")
    (root / "inner").symlink_to(root / "folder")
    storage.put(location("x", str(root / "inner" / "a")), b"a")
    assert (root / "folder" / "a").read_bytes() == b"a", "a link that stays below the root is a folder like others"


def test_a_root_that_is_a_link_itself_is_where_it_leads(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    storage = FsspecStorage([location("root", str(tmp_path / "alias"))], {})
    storage.put(location("x", str(tmp_path / "alias" / "a")), b"a")
    assert (root / "a").read_bytes() == b"a"


def test_a_protocol_that_is_not_there_is_named() -> None:
    storage = FsspecStorage([location("root", "nothing://there")], {})
    with pytest.raises(InvalidInput, match="nothing"):
        storage.check("input_url", location("input_url", "nothing://there/a"))


def test_a_full_or_broken_disk_says_which_place(storage: FsspecStorage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Unavailable, match=r"file://.*a\.bin"):
        storage.put(location("x", str(root / "a.bin")), b"a")
    monkeypatch.undo()
    assert os.listdir(root) == []
