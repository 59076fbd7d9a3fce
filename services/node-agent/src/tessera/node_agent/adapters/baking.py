"""Baking in a process of its own, at low priority (`python -m tessera.runtime.bake`)."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from tessera.domain.errors import Internal, error_of
from tessera.domain.ids import BuildClass, Digest
from tessera.node_agent.adapters.processes import lower_priority
from tessera.node_agent.loops.jobs import Baked, BakedBlob
from tessera.program import ChildProcess

STDERR_TAIL_CHARS = 1500


class ProcessBaker:
    """Implements `Baker`; scratch folders lie below `folder`, on disk."""

    def __init__(self, folder: Path, store_root: Path) -> None:
        self._folder = folder
        self._store = store_root

    def scratch(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="bake-", dir=self._folder))

    def remove(self, scratch: Path) -> None:
        shutil.rmtree(scratch, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what bakes of a killed agent left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def bake(self, source: Path, out: Path, max_batch: int) -> AsyncGenerator[str | Baked, None]:
        log = out / "bake.log"
        command = [
            "-X",
            "faulthandler",
            "-m",
            "tessera.runtime.bake",
            "--source",
            str(source),
            "--store",
            str(self._store),
            "--out",
            str(out),
        ]
        with log.open("wb") as errors:
            process = ChildProcess([sys.executable, *command, "--max-batch", str(max_batch)], stderr=errors, piped=True)
        lower_priority(process.pid)
        last: dict[str, object] = {}
        try:
            async for line in process.lines():
                said = json.loads(line)
                if "event" in said:
                    yield f"{said.get('step', 'baking')} ({100 * float(said.get('share', 0.0)):.0f} %)"
                else:
                    last = said
            code = await process.wait()
        finally:
            process.kill_group()
        if "kind" in last:
            raise error_of(str(last["kind"]), str(last.get("message", "")))
        if code != 0 or "artifact" not in last:
            tail = log.read_text(errors="replace").strip()[-STDERR_TAIL_CHARS:]
            raise Internal(f"baking {source.name[:12]} ended with {code}{': ' + tail if tail else ''}")
        yield _baked(last)


def _baked(said: dict[str, object]) -> Baked:
    blobs = said["blobs"]
    assert isinstance(blobs, list)
    return Baked(
        Digest(str(said["artifact"])),
        BuildClass(str(said["build_class"])),
        tuple(BakedBlob(Digest(blob["digest"]), int(blob["size"]), Path(blob["path"])) for blob in blobs),
    )
