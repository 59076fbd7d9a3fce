"""What may be uploaded."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest
from tessera.registry.core.manifest import SourceFile, UploadLimits, checked_manifest, checked_path

LIMITS = UploadLimits(files=3, file_bytes=100, total_bytes=150, path_bytes=40)
D = Digest("a" * 64)


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("", "empty"), ("/etc/passwd", "relative"), ("C:/x", "relative"), ("../x", "'..'"), ("a/../../x", "'..'"),
        ("a\\..\\x", "backslash"), ("a//b", "empty parts"), ("./a", "'.'"), ("a/", "empty parts"), ("a\x00b", "control"),
        ("a\nb", "control"), ("x" * 41, "40 bytes"),
        ("é" * 21, "40 bytes"), ("/".join("a" * 17), "16 parts"), ("\ud800", "control"),
    ],
)  # fmt: skip
def test_path_that_leaves_the_folder_is_refused_by_name(path: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match="file path") as refused:
        checked_path(path, LIMITS)
    assert rule in str(refused.value)


@given(st.text(max_size=30))
def test_accepted_path_stays_below_its_folder(path: str) -> None:
    try:
        checked_path(path, LIMITS)
    except InvalidInput:
        return
    joined = posixpath.normpath(posixpath.join("/folder", path))
    assert joined == f"/folder/{path}"


def test_manifest_is_sorted_by_path() -> None:
    files = [SourceFile("b", 1, D), SourceFile("a/c", 1, D), SourceFile("a/b", 1, D)]
    assert [f.path for f in checked_manifest(files, LIMITS)] == ["a/b", "a/c", "b"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "at least one file"),
        ([SourceFile("a", 101, D)], "size of a 101: at most 100 bytes a file"),
        ([SourceFile("a", 80, D), SourceFile("b", 80, D)], "at most 150 bytes an upload (exceeded at b)"),
        ([SourceFile(n, 1, D) for n in "abcd"], "at most 3 files an upload (d is one too many)"),
        ([SourceFile("a", 1, D), SourceFile("a", 2, D)], "'a': stands twice"),
        ([SourceFile("a", 1, D), SourceFile("a/b", 1, D)], "'a' is a file"),
        ([SourceFile("a", 1, Digest("xyz"))], "digest of a 'xyz'"),
        ([SourceFile("../a", 1, D)], "file path '../a'"),
    ],
)
def test_violation_names_path_and_limit(files: list[SourceFile], words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        checked_manifest(files, LIMITS)
    assert words in str(refused.value)
