"""The options by which commands take objectives."""

from __future__ import annotations

from typing import Annotated

import typer

from tessera.domain.objectives import Objectives, objectives_of

LatencyOption = Annotated[float | None, typer.Option("--latency-ms", help="objective: milliseconds until the answer")]
AccuracyOption = Annotated[float | None, typer.Option("--min-accuracy", help="objective: 0 to 1; lets lossy variants answer, too")]
CostOption = Annotated[float | None, typer.Option("--max-cost", help="objective: USD per 1,000 requests")]
DatasetOption = Annotated[str, typer.Option("--dataset", help="objective: what the accuracy must have been measured on")]
StrictOption = Annotated[bool, typer.Option("--strict", help="fail where nothing meets the objectives, instead of taking the closest")]


def objectives(latency_ms: float | None, min_accuracy: float | None, max_cost: float | None, dataset: str, strict: bool) -> Objectives:
    """Raises: InvalidInput: names the objective, its value and the limit."""
    return objectives_of(
        {"latency_ms": latency_ms, "min_accuracy": min_accuracy, "max_cost": max_cost, "dataset": dataset, "strict": strict}
    )
