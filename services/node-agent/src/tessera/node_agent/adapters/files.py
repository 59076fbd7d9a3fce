"""What the agent keeps in files: the newest term (durable), and notes beside each runtime (lost with it)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tessera.coord import records
from tessera.domain.errors import DataCorrupted, FailedPrecondition
from tessera.domain.ids import InstanceId, RuntimeId, Term
from tessera.domain.records import InstanceRecord
from tessera.telemetry import get_logger

_log = get_logger(__name__)


def writable_folder(field: str, folder: Path) -> Path:
    """Makes `folder` with mode 0700 if need be.

    Raises:
        FailedPrecondition: it cannot be made or written; names the setting.
    """
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FailedPrecondition(f"{field} {folder} cannot be written: {error.strerror}") from error
    return folder


class TermFile:
    """Implements `Terms`: one line, replaced as a whole, synced with its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "term"

    def load(self) -> Term | None:
        """Raises: FailedPrecondition when the file is there and makes no sense (a node must not forget whom it obeyed)."""
        try:
            return records.decode(Term, self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, DataCorrupted) as error:
            raise FailedPrecondition(
                f"the newest term cannot be read from {self._path}: {error}; remove the file if no scheduler runs"
            ) from error

    def save(self, term: Term) -> None:
        partial = self._path.with_suffix(".new")
        try:
            with partial.open("wb") as file:
                file.write(records.encode(term))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise FailedPrecondition(f"the newest term cannot be written to {self._path}: {error.strerror}") from error


class _Note(msgspec.Struct, frozen=True):
    record: InstanceRecord
    shared_bytes: int
    private_bytes: int


NOTES_FOLDER = "notes"


class RuntimeNotes:
    """Implements `Notes`: RUN/notes/<runtime>/<instance>.note, in a folder that no runtime can write to. Never on a start's path; a note
    that is not there costs only its facts."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / NOTES_FOLDER
        self._decoder = msgspec.json.Decoder(_Note)

    def write(self, record: InstanceRecord, shared_bytes: int, private_bytes: int) -> None:
        path = self._path(record.runtime_id, record.instance_id)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            partial = path.with_suffix(".new")
            partial.write_bytes(msgspec.json.encode(_Note(record, shared_bytes, private_bytes)))
            partial.replace(path)
        except OSError as error:  # its runtime may have ended meanwhile
            _log.debug("no note written", path=str(path), reason=error.strerror)

    def read(self, runtime_id: RuntimeId, instance_id: InstanceId) -> tuple[InstanceRecord, int, int] | None:
        try:
            note = self._decoder.decode(self._path(runtime_id, instance_id).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None
        return note.record, note.shared_bytes, note.private_bytes

    def remove(self, runtime_id: RuntimeId, instance_id: InstanceId) -> None:
        self._path(runtime_id, instance_id).unlink(missing_ok=True)

    def forget(self, runtime_id: RuntimeId) -> None:
        shutil.rmtree(self._folder / runtime_id, ignore_errors=True)

    def keep(self, runtime_ids: Iterable[RuntimeId]) -> None:
        wanted = set(runtime_ids)
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            if folder.name not in wanted:
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, runtime_id: RuntimeId, instance_id: InstanceId) -> Path:
        # Instance ids come over the wire: what is no plain name becomes its hex, so that it cannot leave the folder.
        plain = instance_id.replace("-", "").replace("_", "").isalnum() and instance_id.isascii() and len(instance_id) <= 100
        return self._folder / runtime_id / f"{instance_id if plain else instance_id.encode().hex()[:200]}.note"
