"""Runs an import in a confined subprocess (see `tessera.registry.importer.confine` for what is taken away inside).

From outside: a cleaned environment, a session of its own that is killed as a group, a wall-clock limit, bounded output.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tessera import telemetry
from tessera.domain.artifact import Blob
from tessera.domain.errors import DataCorrupted, DeadlineExceeded, Internal, ResourceExhausted, error_of
from tessera.domain.ids import Digest
from tessera.program import ChildProcess
from tessera.registry.core.source import BuilderCall
from tessera.registry.importer.task import Builder, Failure, Limits, Made, Progress, Task, decode_event, encode_task
from tessera.registry.ports import Imported, OnProgress, Sets

_WORDS_BYTES = 4096
_log = telemetry.get_logger("tessera.registry.sandbox")


class Sandbox:
    """Implements `ports.Importer`."""

    def __init__(self, *, limits: Limits, timeout_s: float, allowed_builders: tuple[str, ...], max_batch: int, threads: int) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._allowed_builders = allowed_builders
        self._max_batch = max_batch
        self._threads = threads or os.cpu_count() or 1

    async def run(self, job_folder: Path, source: Path, builder: BuilderCall | None, sets: Sets, on_progress: OnProgress) -> Imported:
        out = job_folder / "out"
        (out / "tmp").mkdir(parents=True)
        task = Task(
            source=str(source.resolve()),
            out=str(out.resolve()),
            builder=None if builder is None else Builder(builder.reference, builder.arguments, builder.seed),
            allowed_builders=self._allowed_builders,
            max_batch=self._max_batch,
            limits=self._limits,
            evaluation=str(sets.evaluation.resolve()) if sets.evaluation else "",
            metric=sets.metric,
            calibration=str(sets.calibration.resolve()) if sets.calibration else "",
        )
        task_file = job_folder / "task.json"
        task_file.write_bytes(encode_task(task))
        words = job_folder / "stderr"
        process = _start(task_file, out, words, self._threads)
        try:
            async with asyncio.timeout(self._timeout_s):
                ended = await self._follow(process, on_progress)
                code = await process.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"the import took longer than {self._timeout_s:g} s") from None
        finally:
            process.kill_group()
        if isinstance(ended, Failure):
            raise error_of(ended.kind, ended.message)
        if ended is None:
            raise self._death(code, words)
        return _imported(ended, out / "blobs")

    async def _follow(self, process: ChildProcess, on_progress: OnProgress) -> Made | Failure | None:
        ended: Made | Failure | None = None
        try:
            async for line in process.lines():
                event = decode_event(line)
                if isinstance(event, Progress):
                    on_progress(event.message, event.fraction)
                else:
                    ended = event
        except (msgspec.MsgspecError, ValueError) as error:
            raise Internal(f"the import sandbox said what is no event: {error}") from error
        return ended

    def _death(self, code: int, words: Path) -> Exception:
        text = words.read_bytes()[-_WORDS_BYTES:].decode(errors="replace").strip()
        last = text.splitlines()[-1] if text else ""
        _log.warning("import died", exit_code=code, stderr=text)
        if code == -signal.SIGXCPU:
            return ResourceExhausted(f"the import used its {self._limits.cpu_s} s of CPU time")
        if code == -signal.SIGXFSZ:
            return ResourceExhausted(f"the import wrote a file of more than {self._limits.file_bytes} bytes")
        if code == -signal.SIGKILL:
            return ResourceExhausted(f"the import was killed, probably for memory (limit {self._limits.memory_bytes} bytes)")
        if "MemoryError" in text or "can't allocate memory" in text or "std::bad_alloc" in text:
            return ResourceExhausted(f"the import needs more than {self._limits.memory_bytes} bytes of memory")
        return Internal(f"the import died with exit status {code}: {last}")


def _environment(outer: Mapping[str, str], scratch: Path, threads: int) -> dict[str, str]:
    """Nothing of ours but what a Python needs to start: no tokens, no proxies, no endpoints."""
    kept = {name: outer[name] for name in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "LC_ALL") if name in outer}
    return kept | {
        "HOME": str(scratch), "TMPDIR": str(scratch), "XDG_CACHE_HOME": str(scratch), "HF_HOME": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore", "PYTHONHASHSEED": "0",
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def _start(task_file: Path, out: Path, words: Path, threads: int) -> ChildProcess:
    with words.open("wb") as stderr:
        return ChildProcess(
            [sys.executable, "-P", "-m", "tessera.registry.importer", str(task_file), str(os.getpid())],
            stderr=stderr,
            piped=True,
            cwd=out,
            env=_environment(os.environ, out / "tmp", threads),
        )


def _imported(made: Made, folder: Path) -> Imported:
    blobs = tuple(Blob(Digest(digest), size) for digest, size in made.blobs)
    for blob in blobs:
        path = folder / blob.digest
        if not path.is_file() or path.stat().st_size != blob.size_bytes:
            raise DataCorrupted(f"the import names blob {blob.digest} of {blob.size_bytes} bytes and did not write it")
    aten, onnx = (Digest(artifact) if artifact else None for artifact in (made.aten, made.onnx))
    return Imported(folder, made.source_kind, aten, onnx, made.onnx_reason, blobs, made.notes, made.agreement)
