"""The exit codes of the `tessera` command, and what it says where it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e_platform import Platform, tessera

pytestmark = pytest.mark.usefixtures("no_settings_of_ours")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("model", "show", "no-such-model"), 1, "no-such-model"),
        (("infer", "no-such-model", "-i", "x=[1]"), 1, "no-such-model"),
        (("infer", "net", "-i", "image=[[1.0]]"), 2, "image"),
        (("infer", "net", "-i", "image"), 2, "NAME=FILE.npy"),
        (("infer", "net", "-i", "image=/no/such/file.npy"), 2, "/no/such/file.npy"),
        (("trace", "show", "not-an-id"), 2, "32 lowercase hex digits"),
        (("explain", "no-such-model"), 1, "no-such-model"),
        (("explain", "0" * 32), 1, "0" * 32),
        (("model", "register", "Bad Name", "tessera.registry.builders:bert"), 2, "Bad Name"),
        (("model", "delete", "no-such-model", "--yes"), 1, "no-such-model"),
        (("model", "alias", "a", "no-such-model"), 1, "no-such-model"),
        (("profile", "run", "no-such-model"), 1, "no-such-model"),
        (("no-such-command",), 2, "no-such-command"),
        (("ps", "-o", "xml"), 2, "xml"),
    ],
)
def test_exit_codes(platform: Platform, words: tuple[str, ...], code: int, said: str) -> None:
    done = tessera(*words, env={"TESSERA_STATE": str(platform.state)})
    assert done.returncode == code, (done.stdout, done.stderr)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_deadline_has_an_exit_code_of_its_own(platform: Platform, image: Path) -> None:
    words = ("infer", "net@1/ort-fp32", "-i", f"image={image}", "--timeout")
    assert platform.tessera(*words, "60").returncode == 0
    with platform.frozen("net", "ort-fp32"):
        late = platform.tessera(*words, "0.3")
    assert (late.returncode, late.stdout) == (3, "")
    assert late.stderr.startswith("error: ")


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    for words in (("status",), ("ps",), ("down",), ("config", "show")):
        done = tessera(*words, "--state", str(tmp_path / "nowhere"))
        assert done.returncode == 1, words
        assert str(tmp_path / "nowhere") in done.stderr
        assert "Traceback" not in done.stderr
