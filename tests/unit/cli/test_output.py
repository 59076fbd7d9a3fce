"""Formats, cells, exit codes."""

from __future__ import annotations

import json

import pytest
import typer
import yaml

from tessera.api.gateway.v1 import gateway_pb2
from tessera.cli import views
from tessera.cli.output import Format, exit_codes, mebibytes, show, text
from tessera.domain.errors import DeadlineExceeded, InvalidInput, ModelNotFound, TesseraError

ROWS = [{"name": "a", "size": 1.5, "tags": ["x", "y"]}, {"name": "b", "size": 2.25, "tags": []}]


def test_json_and_yaml_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, Format.JSON)
    as_json = json.loads(capsys.readouterr().out)
    show(ROWS, Format.YAML)
    assert as_json == ROWS == yaml.safe_load(capsys.readouterr().out)


def test_names_are_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show(ROWS, Format.NAME)
    assert capsys.readouterr().out == "a\nb\n"


def test_a_table_has_the_columns_asked_for_and_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 150
    show([{"name": long, "size": 3.14159, "secret": "no"}], Format.TABLE, columns=("name", "size"))
    printed = capsys.readouterr().out
    assert long in printed
    assert "3.14" in printed
    assert "no" not in printed.split()


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0.00"), (3.14159, "3.14"), (0.01, "0.01"), (8.72e-7, "8.7e-07"), (-0.0034, "-0.0034")])
def test_small_figures_are_no_zeros(value: float, shown: str) -> None:
    assert text(value) == shown


def test_what_a_small_model_costs_is_told_and_what_nobody_expects_is_nothing() -> None:
    answer = gateway_pb2.ExplainResponse(
        variants=[gateway_pb2.VariantOption(usd_per_1000=8.71653e-7, expected_ms=-1, latency_ms=12.3456789)]
    )
    (option,) = views.explanation(answer)["variants"]
    assert (option["usd_per_1000"], option["expected_ms"], option["latency_ms"]) == (8.71653e-7, None, 12.3457)


def test_an_empty_table_still_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    show([], Format.TABLE, columns=("name", "size"))
    assert capsys.readouterr().out.split() == ["NAME", "SIZE"]


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), ("", "-"), (0, "0"), (1.005, "1.00"), ([], "-"), (["a", 1], "a, 1"), (False, "False")]
)
def test_cells(value: object, shown: str) -> None:
    assert text(value) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0.0 KiB"), (4096, "4.0 KiB"), (1 << 20, "1.0 MiB"), (3 << 30, "3072.0 MiB")])
def test_sizes(count: int, shown: str) -> None:
    assert mebibytes(count) == shown


@pytest.mark.parametrize(
    ("error", "code"), [(ModelNotFound("m"), 1), (InvalidInput("field", 1, "limit"), 2), (DeadlineExceeded("late"), 3)]
)
def test_exit_codes(error: TesseraError, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as raised, exit_codes():
        raise error
    assert raised.value.exit_code == code
    assert str(error) in capsys.readouterr().err
