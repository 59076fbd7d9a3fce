"""`tessera batch submit | list | show | cancel`: offline requests from a URL to a URL."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import views
from tessera.cli.connection import DomainOption, EndpointOption, StateOption, connect
from tessera.cli.objectives import AccuracyOption, CostOption, DatasetOption, LatencyOption, StrictOption
from tessera.cli.output import EXIT_FAILED, Format, OutputOption, exit_codes, note, show
from tessera.clock import SystemClock
from tessera.domain.errors import DeadlineExceeded, InvalidInput, Unavailable

if TYPE_CHECKING:
    from tessera.sdk import BatchOptions, Client, types

EXIT_INTERRUPTED = 130
ENDED = ("done", "failed", "cancelled")
BAR_CHARS = 30
ABSENT_S = 60.0
"""How long a profiler that is restarted may be away before watching ends."""

batch = typer.Typer(no_args_is_help=True, help="Answer whole files at low priority, from a URL to a URL.")

WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="follow it to its end; Ctrl-C leaves the job running")]
COLUMNS = ("id", "model", "state", "rows", "failed", "input", "output", "reason")


@batch.command("submit")
def submit(
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION, NAME@VERSION/VARIANT, an alias or task:NAME")],
    input_url: Annotated[str, typer.Argument(help="rows to answer: s3://..., file:///... or a path, npz, jsonl or parquet")],
    output_url: Annotated[str, typer.Argument(help="a file, or a folder for parts; below a root that the platform allows")],
    input_format: Annotated[str, typer.Option("--input-format", help="npz, jsonl or parquet (default: by the suffix)")] = "",
    output_format: Annotated[str, typer.Option("--output-format", help="the same (default: by the suffix, else the input's)")] = "",
    batch_size: Annotated[int, typer.Option("--batch-size", help="rows per request (default: what every variant takes, 8 at most)")] = 0,
    latency_ms: LatencyOption = None,
    min_accuracy: AccuracyOption = None,
    max_cost: CostOption = None,
    dataset: DatasetOption = "",
    strict: StrictOption = False,
    max_errors: Annotated[int, typer.Option("--max-errors", help="rows that may fail before the job does")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="go on where an earlier job to this output stopped")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what an earlier job wrote")] = False,
    watch: WatchOption = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """Queue a job. It runs while nothing is overloaded, one at a time, and goes on after a restart where it was."""
    with exit_codes():
        if resume and overwrite:
            raise InvalidInput("--resume, --overwrite", None, "only one of them can be meant")
        options: BatchOptions = {
            "input_format": input_format,
            "output_format": output_format,
            "batch_size": batch_size,
            "dataset": dataset,
            "strict": strict,
            "max_errors": max_errors,
            "if_exists": "resume" if resume else "overwrite" if overwrite else "",
        }
        if latency_ms is not None:
            options["latency_ms"] = latency_ms
        if min_accuracy is not None:
            options["min_accuracy"] = min_accuracy
        if max_cost is not None:
            options["max_cost"] = max_cost
        with connect(endpoint, state, trust_domain) as client:
            found = client.submit_batch(model, url(input_url), url(output_url), **options)
            if watch:
                note(f"submitted {found.job_id}")
                found = _follow(client, found.job_id)
            _show(found, output)
            _judge(found, watch)


@batch.command("list")
def list_batches(
    endpoint: EndpointOption = None, state: StateOption = None, trust_domain: DomainOption = "default", output: OutputOption = Format.TABLE
) -> None:
    """All jobs that are known, newest first."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        found = client.batches()
        show([views.batch(job) for job in found], output, rows=[_row(job) for job in found], columns=COLUMNS, name=lambda item: item["id"])


@batch.command("show")
def show_batch(
    job: Annotated[str, typer.Argument(help="the job's id")],
    watch: WatchOption = False,
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
    output: OutputOption = Format.TABLE,
) -> None:
    """One job. With --watch: to its end, exit code 1 when that is not done."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        found = _follow(client, job) if watch else client.batch(job)
        _show(found, output)
        _judge(found, watch)


@batch.command("cancel")
def cancel_batch(
    job: Annotated[str, typer.Argument(help="the job's id")],
    endpoint: EndpointOption = None,
    state: StateOption = None,
    trust_domain: DomainOption = "default",
) -> None:
    """End a job; what it has written stays, and a submission with --resume goes on there."""
    with exit_codes(), connect(endpoint, state, trust_domain) as client:
        before = client.batch(job)
        if before.state in ENDED:
            note(f"{job} had ended before: {before.state}")
            return
        found = client.cancel_batch(job)
        note(f"cancelled {job}" if found.state == "cancelled" or found.cancelling else f"{job} had ended before: {found.state}")


def url(text: str) -> str:
    """A URL as it is; a path as it is meant here, which is a path on the platform's machine, too."""
    return text if re.match(r"[a-z][a-z0-9+.-]*:", text) else str(Path(text).expanduser().absolute())


def _follow(client: Client, job_id: str) -> types.BatchInfo:
    """Follows the job to its end, over a restart of the profiler too. Ctrl-C ends the following and not the job."""
    line, clock, away_since_s = _Line(), SystemClock(), None
    try:
        while True:
            try:
                for found in client.watch_batch(job_id):
                    away_since_s = None
                    line.show(found)
                    if found.state in ENDED:
                        return found
            except (Unavailable, DeadlineExceeded) as error:
                now_s = clock.monotonic_s()
                away_since_s = away_since_s or now_s
                if now_s - away_since_s > ABSENT_S:
                    raise
                line.say(f"waiting for the profiler: {error}")
            time.sleep(1.0)
    except KeyboardInterrupt:
        line.end()
        note(f"job {job_id} goes on; 'tessera batch show {job_id} --watch' follows it, 'tessera batch cancel {job_id}' ends it")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        line.end()


class _Line:
    """Progress on stderr: one line that is rewritten on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._shown = False

    def show(self, found: types.BatchInfo) -> None:
        share = found.rows_done / found.rows if found.rows else 0.0
        bar = "#" * int(share * BAR_CHARS)
        failed = f", {found.rows_failed} failed" if found.rows_failed else ""
        words = f" ({found.reason})" if found.reason else ""
        self.say(f"{found.state} [{bar:<{BAR_CHARS}}] {found.rows_done}/{found.rows or '?'} rows{failed}{words}")

    def say(self, text: str) -> None:
        if self._on:
            sys.stderr.write(f"\r\033[K{text[:160]}")
            sys.stderr.flush()
            self._shown = True

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            self._shown = False


def _show(found: types.BatchInfo, output: Format) -> None:
    show(views.batch(found), output, rows=[_row(found)], columns=COLUMNS, name=lambda item: item["id"])


def _judge(found: types.BatchInfo, watched: bool) -> None:
    if watched and found.state != "done":
        raise typer.Exit(EXIT_FAILED)


def _row(found: types.BatchInfo) -> dict[str, Any]:
    return {
        "id": found.job_id,
        "model": found.model,
        "state": "cancelling" if found.cancelling and found.state not in ENDED else found.state,
        "rows": f"{found.rows_done}/{found.rows or '?'}",
        "failed": found.rows_failed,
        "input": found.input_url,
        "output": found.output_url,
        "reason": found.reason,
    }


def register(app: typer.Typer) -> None:
    app.add_typer(batch, name="batch")
