"""Six ways to start models, on the same calls: make bench NAME=startpaths

Eighteen models (five families; fine-tuned siblings of three), memory for a third of their weights, each call due at its moment whatever
became of those before. Traces: a stretch of the Azure 2019 and 2021 samples where they lie, a function a model, at most 5 calls a second,
and Poisson in three rates. Time is compressed ten times, and with it every timer: what is kept for ten minutes is kept for one, what is
idle after a minute is idle after six seconds.

*always-fresh*, *pagurus*, *tetris* and *optimus* are what was published, each with what it may use (`published`), on PyTorch and its
modules, called directly. *tetris on ours* is a platform of real processes without transformations (zygotes, mapped stores, bind),
*tessera* the same with them: all calls go through the gateway, and name the `aten` variant, so that engines are alike. A cell is one trace
with one system; those that are done are kept in `.demo/bench-startpaths/cells`, and a run goes on where another one was interrupted.

Who has no answer half a minute after the last call gives up, and what it waited counts as its latency.

Regret: of the starts that the scheduler decided, what the chosen path took at the median for that model over what the best of those offered
took. Noise: two standard errors of the differences, call by call.

    BENCH_MINUTES=2 make bench NAME=startpaths             minutes of each cell (8)
    BENCH_POISSON_MINUTES=2 make bench NAME=startpaths     of Poisson cells others: they are as they are from their first minute on
    BENCH_ANEW=1 make bench NAME=startpaths                forgets the cells that are kept
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.arrivals import Arrival
from benchmarks.embedded import platform
from benchmarks.published import SYSTEMS, Known, Plans
from benchmarks.report import CUDA, Report, median, percentile
from benchmarks.startcells import GAVE_UP, POISSON, STATE, VARIANT, Call, Cell, ours, published, schedules
from benchmarks.startmodels import FOLDER, MODELS
from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.sdk import Client
from tessera.tensorstore.artifact import decode

OURS, PLAIN = "tessera", "tetris on ours"
NAMES = (*(system.name for system in SYSTEMS), PLAIN, OURS)
MAY_USE = {system.name: system.may_use for system in SYSTEMS} | {
    PLAIN: "zygotes, warm runtimes, mapped stores, flat programs",
    OURS: "the same, and idle instances",
}
WANTED = -0.5
LEAST_STARTS = 2
"""Of a model by a path, to know what that takes."""


def prepare() -> dict[str, Known]:
    """Registered once; blobs beside, as the published systems read them."""
    subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.startmodels"], check=True)
    with platform(state=STATE) as client:
        digests = {model.name: _registered(client, model.name, str(model.exported)) for model in MODELS}
    repository, blobs = Repository(f"file://{STATE / 'repository'}"), FOLDER / "blobs"
    blobs.mkdir(exist_ok=True)
    found = {}
    for model in MODELS:
        artifact = decode(repository.read(digests[model.name]))
        for digest in (digests[model.name], *(blob.digest for blob in artifact.blobs())):
            if not (blobs / digest).exists():
                (blobs / digest).write_bytes(repository.read(digest))
        assert artifact.graph is not None, "a flat program has one"
        found[model.name] = Known.of(model, artifact, (blobs / artifact.graph.digest).read_bytes())
    (FOLDER / "artifacts.json").write_text(json.dumps(digests))
    return found


def _registered(client: Client, name: str, source: str) -> Digest:
    result = client.register(name, source, wait=True)
    (variant,) = [one for one in result.variants if one.key.variant == VARIANT]
    if not result.unchanged:
        print(f"registered {name}", flush=True)
    return Digest(variant.artifact_digest)


def cell(
    name: str,
    trace: str,
    schedule: Sequence[Arrival],
    known: Mapping[str, Known],
    plans: Plans,
    minutes: float,
) -> Cell:
    path = FOLDER / "cells" / f"{minutes:g}" / trace.replace(" ", "-").replace(",", "") / f"{name.replace(' ', '-')}.json"
    if not path.exists():
        budget_bytes = sum(each.size_bytes for each in known.values()) // 3
        print(f"{trace}: {name}, {len(schedule)} calls", flush=True)
        if name in (OURS, PLAIN):
            found = ours(name == OURS, budget_bytes, schedule)
        else:
            (system,) = [one for one in SYSTEMS if one.name == name]
            found = asyncio.run(published(system, known, plans, budget_bytes, schedule))
        found.kept(path)
    return Cell.of(path)


def row(report: Report, trace: str, name: str, found: Cell) -> None:
    took = [call.ms for call in found.calls]
    paths = Counter(call.path or GAVE_UP for call in found.calls)
    report.row(
        trace=trace, system=name, calls=len(found.calls),
        mean_ms=statistics.fmean(took), p50_ms=median(took), p99_ms=percentile(took, 0.99),
        paths=", ".join(f"{path} {count / len(took):.0%}" for path, count in paths.most_common()), memory_mib=found.memory_mib,
        wrong=sum(not call.right for call in found.calls if not call.error), unanswered=sum(bool(call.error) for call in found.calls),
    )  # fmt: skip


def mean_ms(found: Cell) -> float:
    return statistics.fmean(call.ms for call in found.calls)


def goals(report: Report, trace: str, cells: Mapping[str, Cell]) -> None:
    for name in NAMES[:-2]:
        change = mean_ms(cells[OURS]) / mean_ms(cells[name]) - 1
        report.goal(f"vs_{name}.{trace}", change, "<=", WANTED, f"of {mean_ms(cells[name]):.0f} ms")
    theirs = mean_ms(cells[PLAIN])
    apart = [one.ms - other.ms for one, other in zip(cells[OURS].calls, cells[PLAIN].calls, strict=True)]
    noise = 2 * float(np.std(apart)) / len(apart) ** 0.5 / theirs
    report.goal(
        f"vs_{PLAIN.replace(' ', '_')}.{trace}", statistics.fmean(apart) / theirs, "<=", noise, f"of {theirs:.0f} ms, with its noise"
    )


def starts(calls: Sequence[Call]) -> list[Call]:
    """One of those that waited for each start: all of them are told what it took."""
    return list({(call.model, call.path, call.start_ms): call for call in calls if call.start_ms}.values())


def true_ms(cells: Sequence[Cell]) -> dict[tuple[str, str], float]:
    """By model and path, where it was seen often enough."""
    found: dict[tuple[str, str], list[float]] = {}
    for each in cells:
        for call in starts(each.calls):
            found.setdefault((call.model, call.path), []).append(call.start_ms)
    return {key: median(took) for key, took in found.items() if len(took) >= LEAST_STARTS}


def regret_row(report: Report, trace: str, calls: Sequence[Call], known_ms: Mapping[tuple[str, str], float]) -> None:
    regrets, unknown = [], 0
    for call in (call for call in starts(calls) if call.options):
        offered = [known_ms[call.model, path] for path in {path for path, _, _ in call.options} if (call.model, path) in known_ms]
        if (call.model, call.path) in known_ms and len(offered) > 1:
            regrets.append(known_ms[call.model, call.path] - min(offered))
        else:
            unknown += 1
    if regrets:
        report.row(
            trace=trace, system="regret of the chooser", calls=len(regrets), mean_ms=statistics.fmean(regrets), p50_ms=median(regrets),
            p99_ms=percentile(regrets, 0.99), paths=f"{unknown} more starts of which fewer than two paths are known",
        )  # fmt: skip


def summed_up(report: Report, found: Mapping[str, Mapping[str, Cell]]) -> None:
    """`found`: by trace and system."""
    known_ms = true_ms([cells[name] for cells in found.values() for name in (OURS, PLAIN)])
    for trace, cells in found.items():
        for name in NAMES:
            row(report, trace, name, cells[name])
        regret_row(report, trace, cells[OURS].calls, known_ms)
        goals(report, trace, cells)
    report.row(system="CUDA", paths=CUDA)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it, platforms and containers are taken down
    minutes = float(os.environ.get("BENCH_MINUTES", "8"))
    poisson_minutes = float(os.environ.get("BENCH_POISSON_MINUTES", minutes))
    if os.environ.get("BENCH_ANEW"):
        shutil.rmtree(FOLDER / "cells", ignore_errors=True)
    report = Report("startpaths")
    known = prepare()
    plans = Plans(known)
    for name, words in MAY_USE.items():
        report.row(system=name, paths=f"may use: {words}")
    found: dict[str, dict[str, Cell]] = {}
    for at, (trace, schedule) in enumerate(schedules(60.0 * minutes, 60.0 * poisson_minutes).items()):
        lasts = poisson_minutes if trace in POISSON else minutes
        turn = at % len(NAMES)
        order = (*NAMES[turn:], *NAMES[:turn])  # another one first each time
        found[trace] = {name: cell(name, trace, schedule, known, plans, lasts) for name in order}
    summed_up(report, found)
    report.finish()


if __name__ == "__main__":
    main()
