"""The repository suite over a local folder, over a file system that is none, and over an S3 server on loopback (moto)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.repository.interface import BlobRepository
from tessera.testing.conformance_repository import RepositoryConformance
from tessera.testing.s3 import running_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with running_s3() as endpoint:
        yield endpoint


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


class TestS3(RepositoryConformance):
    """The endpoint is configured, the credentials come from the environment, as in a cluster."""

    @pytest.fixture(autouse=True)
    def _server(self, s3: str) -> None:
        self.options = {"endpoint_url": s3}

    def open_repository(self, folder: Path) -> BlobRepository:
        return Repository(f"s3://models{folder}", self.options)

    def corrupt(self, repository: BlobRepository, digest: Digest, data: bytes) -> None:
        assert isinstance(repository, Repository)
        root = repository.url.removeprefix("s3://")
        fsspec.filesystem("s3", **self.options).pipe_file(f"{root}/{repository.locate(digest)[0].object}", data)
