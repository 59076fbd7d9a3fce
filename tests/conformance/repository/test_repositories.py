"""The repository suite over a local folder and over a file system that is none."""

from __future__ import annotations

from pathlib import Path

import fsspec

from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.repository.interface import BlobRepository
from tessera.testing.conformance_repository import RepositoryConformance


class TestFile(RepositoryConformance):
    def open_repository(self, folder: Path) -> BlobRepository:
        return Repository(folder.as_uri())

    def corrupt(self, repository: BlobRepository, digest: Digest, data: bytes) -> None:
        assert isinstance(repository, Repository)
        path = Path(repository.url.removeprefix("file://"), repository.locate(digest)[0].object)
        path.chmod(0o644)
        path.write_bytes(data)


class TestMemory(RepositoryConformance):
    def open_repository(self, folder: Path) -> BlobRepository:
        return Repository(f"memory://{folder}")

    def corrupt(self, repository: BlobRepository, digest: Digest, data: bytes) -> None:
        assert isinstance(repository, Repository)
        root = repository.url.removeprefix("memory://")
        fsspec.filesystem("memory").pipe_file(f"{root}/{repository.locate(digest)[0].object}", data)
