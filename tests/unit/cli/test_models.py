"""What `tessera model` refuses before it asks, or calls anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera.cli.__main__ import app


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (
            ("delete", "net@2/ort-int8"),
            "model 'net@2/ort-int8': names a variant; a model or a version of it is deleted, with all its variants",
        ),
        (("alias", "best", "net@2/ort-int8"), "target 'net@2/ort-int8': names a variant; an alias stands for a model or a version of it"),
    ],
)
def test_a_variant_is_neither_deleted_nor_aliased(words: tuple[str, ...], refusal: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["model", *words, "--endpoint", "127.0.0.1:9", "--state", str(tmp_path)], input="y\n")
    assert (result.exit_code, result.stderr) == (2, f"error: {refusal}\n")
    assert result.stdout == "", "nothing is asked"
