"""What a seal shows and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.ids import Digest
from tessera.tensorstore.seal import is_sealed, seal

DIGEST, OTHER = Digest("3b9aca01" + "0" * 56), Digest("00000002" + "0" * 56)


def sealed(path: Path, digest: Digest = DIGEST) -> bool:
    return is_sealed(path.stat().st_mtime_ns, digest)


def test_a_sealed_file_shows_it_to_who_knows_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 100)
    assert not sealed(path)
    second = path.stat().st_mtime_ns // 10**9
    seal(path, DIGEST)
    assert sealed(path)
    assert not sealed(path, OTHER)
    assert path.stat().st_mtime_ns // 10**9 == second, "still about when it was written"
    seal(path, DIGEST)
    assert sealed(path)


@pytest.mark.parametrize("how", ["in place", "appended", "truncated", "touched"])
def test_any_change_breaks_it(tmp_path: Path, how: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 100)
    seal(path, DIGEST)
    if how == "in place":
        with path.open("r+b") as file:
            file.write(b"y")
    elif how == "appended":
        with path.open("ab") as file:
            file.write(b"y")
    elif how == "truncated":
        os.truncate(path, 50)
    else:
        os.utime(path)
    assert not sealed(path)


def test_it_moves_with_the_file_and_lives_through_a_change_of_mode(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"x")
    seal(path, DIGEST)
    path.chmod(0o444)
    assert sealed(path.rename(tmp_path / "elsewhere"))


@given(st.integers(0, 2**62), st.text("0123456789abcdef", min_size=64, max_size=64))
def test_every_digest_has_one_nanosecond(modified_ns: int, digest: str) -> None:
    stamp = int(digest[:8], 16) % 10**9
    assert is_sealed(modified_ns, Digest(digest)) == (modified_ns % 10**9 == stamp)
