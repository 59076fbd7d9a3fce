"""`tessera infer MODEL --input NAME=FILE.npy`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tessera.cli.connection import EndpointOption, StateOption, connect
from tessera.cli.objectives import AccuracyOption, CostOption, DatasetOption, LatencyOption, StrictOption, objectives
from tessera.cli.output import Format, OutputOption, exit_codes, show
from tessera.domain.errors import InvalidInput, Unsupported

SHOWN_VALUES = 6


def _inputs(pairs: list[str]) -> dict[str, Any]:
    import numpy as np

    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidInput("--input", pair, "must be NAME=FILE.npy or NAME=JSON")
        if not value.lstrip().startswith(("[", "{")) and Path(value).suffix == ".npy":
            try:
                found[name] = np.load(value, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise InvalidInput(f"--input {name}", value, f"cannot be read as a .npy file: {error}") from error
            continue
        try:
            given = json.loads(value)
            array = np.asarray(given)
        except (json.JSONDecodeError, ValueError) as error:
            raise InvalidInput(f"--input {name}", value[:60], f"is neither FILE.npy nor JSON: {error}") from error
        found[name] = array.astype(np.float32) if array.dtype == np.float64 else given
    return found


def infer(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION, NAME@VERSION/VARIANT, an alias or task:NAME")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", "-i", help="NAME=FILE.npy, or NAME=JSON (numbers become INT64 or FP32)")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="write each output to FOLDER/NAME.npy (%2F for / in NAME)")] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="seconds, starting and queueing included")] = None,
    latency_ms: LatencyOption = None,
    min_accuracy: AccuracyOption = None,
    max_cost: CostOption = None,
    dataset: DatasetOption = "",
    strict: StrictOption = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Run a model once."""
    with exit_codes(), connect(endpoint, state) as client:
        asked = objectives(latency_ms, min_accuracy, max_cost, dataset, strict)
        given = _inputs(inputs or [])
        if save is not None:
            _make(save)
        answer = client.infer(model, given, objectives=asked, timeout_s=timeout)
        data = {
            "model": answer.model,
            "version": answer.model_version,
            "variant": answer.variant,
            "node": answer.node,
            "start_path": answer.start_path,
            "request_id": answer.request_id,
            "answered_by": answer.answered_by,
            "objective_missed": answer.objective_missed,
            "outputs": {
                name: {"shape": list(array.shape), "datatype": str(array.dtype), "data": _data(array)}
                for name, array in answer.outputs.items()
            },
        }
        rows = [
            {
                "output": name,
                "shape": str(list(array.shape)),
                "datatype": str(array.dtype),
                "first": str(_data(array.ravel()[:SHOWN_VALUES])),
            }
            for name, array in answer.outputs.items()
        ]
        if output is Format.TABLE:
            missed = f"; misses {answer.objective_missed}" if answer.objective_missed else ""
            print(f"{answer.answered_by}/{answer.variant} on {answer.node}, {answer.start_path}{missed}; request {answer.request_id}")
        show(data, output, rows=rows, name=lambda item: item["request_id"])
        if save is not None:
            _save(save, answer.outputs)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput("--save", str(folder), f"cannot be made: {error.strerror}") from error


def _save(folder: Path, outputs: Mapping[str, Any]) -> None:
    """Raises: InvalidInput: a file cannot be written. Unsupported: some outputs are texts; the others are written."""
    import numpy as np

    texts = [name for name, array in outputs.items() if array.dtype == object]
    for name, array in outputs.items():
        # Exporters make paths of names, absolute ones too; none may lead out of the folder, or to another output's file.
        file = folder / f"{name.replace('%', '%25').replace('/', '%2F')}.npy"
        try:
            if name not in texts:
                np.save(file, array, allow_pickle=False)
        except OSError as error:
            raise InvalidInput("--save", str(file), f"cannot be written: {error.strerror}") from error
    if texts:
        raise Unsupported(f"output {', '.join(texts)}: .npy holds no texts; they stand in --output json and yaml")


def _data(array: Any) -> Any:
    return [element.decode(errors="replace") for element in array.ravel()] if array.dtype == object else array.tolist()


def register(app: typer.Typer) -> None:
    app.command()(infer)
