"""Baking in a process of its own, at low priority (`python -m tessera.runtime.bake`)."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from tessera.domain.accuracy import Agreement
from tessera.domain.errors import Internal, Unavailable, error_of
from tessera.domain.ids import BuildClass, Digest
from tessera.node_agent.adapters.processes import lower_priority
from tessera.node_agent.loops.jobs import Baked, BakedBlob, BakeFiles
from tessera.program import ChildProcess

STDERR_TAIL_CHARS = 1500


class ProcessBaker:
    """Implements `Baker`; scratch folders lie below `folder`, on disk."""

    def __init__(self, folder: Path, store_root: Path, user: int | None = None) -> None:
        """`user`: as whom it runs; None: as this process's."""
        self._folder = folder
        self._store = store_root
        self._user = user

    def scratch(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="bake-", dir=self._folder))
        if self._user is not None:
            for folder in (self._folder.parent, self._folder):
                folder.chmod(0o711)  # to pass through, to what is its own
            os.chown(made, self._user, self._user)
        return made

    def remove(self, scratch: Path) -> None:
        shutil.rmtree(scratch, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what bakes of a killed agent left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def bake(self, files: BakeFiles) -> AsyncGenerator[str | Baked, None]:
        log = self._folder / f"{files.out.name}.log"
        command = ["-X", "faulthandler", "-m", "tessera.runtime.bake", *_options(files, self._store)]
        environment = None
        if self._user is not None:
            command += ["--user", str(self._user)]
            environment = {**os.environ, "HOME": str(files.out)}
        with log.open("wb") as errors:
            process = ChildProcess([sys.executable, *command], stderr=errors, piped=True, env=environment)
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
            tail = log.read_text(errors="replace").strip()[-STDERR_TAIL_CHARS:]
            log.unlink()
        if "kind" in last:
            raise error_of(str(last["kind"]), str(last.get("message", "")))
        if code < 0:  # not its own doing: another try may end well
            raise Unavailable(f"baking {files.recipe} was ended by signal {-code}")
        if code != 0 or "artifact" not in last:
            raise Internal(f"baking {files.recipe} of {files.source.name[:12]} ended with {code}{': ' + tail if tail else ''}")
        yield _baked(last, files.out)


def _options(files: BakeFiles, store: Path) -> list[str]:
    given = {
        "--source": files.source,
        "--store": store,
        "--out": files.out,
        "--max-batch": files.max_batch,
        "--recipe": files.recipe,
        "--evaluation": files.evaluation,
        "--metric": files.metric or None,
        "--calibration": files.calibration,
    }
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def _baked(said: dict[str, object], out: Path) -> Baked:
    """Only what the ended process left in its own folder: a path that leads elsewhere would have this process read what it may not.

    Raises:
        Internal: one does, or there is no word about how the build agrees with the export.
    """
    blobs = said["blobs"]
    assert isinstance(blobs, list)
    try:
        agreement = msgspec.convert(said.get("agreement"), Agreement)
    except msgspec.ValidationError as error:
        raise Internal(f"baking says no agreement: {error}") from None
    return Baked(
        Digest(str(said["artifact"])),
        BuildClass(str(said["build_class"])),
        tuple(BakedBlob(Digest(blob["digest"]), int(blob["size"]), _own_file(out, str(blob["path"]))) for blob in blobs),
        agreement,
        str(said.get("notes", "")),
    )


def _own_file(out: Path, name: str) -> Path:
    path = out / name
    if path.is_symlink() or not path.is_file() or path.resolve().parent != out.resolve():
        raise Internal(f"baking names {name!r}, which is no file of its own")
    return path
