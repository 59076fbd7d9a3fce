"""A registry as a process, and a node that really bakes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import yaml
from blake3 import blake3

from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.registry.v1 import registry_pb2, registry_pb2_grpc
from tessera.coord import keys
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.errors import Unavailable, error_of
from tessera.domain.ids import BuildClass, Digest, NodeId, ProfileClass, TrustDomain
from tessera.domain.records import NodeRecord
from tessera.repository import Repository
from tessera.rpc import RpcServer, connect
from tessera.tensorstore.artifact import decode, digest_of
from tessera.tensorstore.artifact import encode as encode_artifact
from tessera.testing.etcd import free_port

DOMAIN = TrustDomain("default")


def source_file(path: str, data: bytes) -> registry_pb2.SourceFile:
    return registry_pb2.SourceFile(path=path, size_bytes=len(data), digest=blake3(data).hexdigest())


def _start(config: Path, log_path: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tessera.registry", "--config", str(config)], stdout=log, stderr=log, env=environment
        )


class RegistryProcess:
    """`python -m tessera.registry`, and calls to it."""

    def __init__(self, folder: Path, etcd: str, **settings: Any) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.port = free_port()
        self.repository = Repository(f"file://{folder}/repository")
        self.settings = {
            "address": f"127.0.0.1:{self.port}",
            "etcd_endpoints": [etcd],
            "repository_url": f"file://{folder}/repository",
            "state_folder": str(self.state),
            "lease_ttl_s": 2,
            "recipes": [],
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: grpc.aio.Channel | None = None

    async def start(self, failpoints: str = "") -> None:
        config = self.folder / "registry.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        self.process = _start(config, self.folder / "registry.log", dict(os.environ, TESSERA_FAILPOINTS=failpoints))
        self.channel = connect(f"127.0.0.1:{self.port}")
        for _ in range(300):
            assert self.process.poll() is None, self.log()
            try:
                await self.stub.ListModels(registry_pb2.ListModelsRequest(), timeout=1.0)
                return
            except Unavailable:
                await asyncio.sleep(0.05)
        raise AssertionError(self.log())

    def log(self) -> str:
        return (self.folder / "registry.log").read_text()[-4000:]

    @property
    def stub(self) -> registry_pb2_grpc.RegistryStub:
        return registry_pb2_grpc.RegistryStub(self.channel)

    async def dead(self) -> int:
        """Waits until the process has ended."""
        assert self.process is not None
        code = await asyncio.to_thread(self.process.wait, 120)
        await self._close()
        return code

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.dead()

    async def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert await self.dead() == 0, self.log()
        await self._close()

    async def _close(self) -> None:
        if self.channel is not None:
            await self.channel.close(grace=10.0)  # calls in flight learn that the server is gone, instead of being cancelled here
            self.channel = None

    async def upload(
        self, files: dict[str, bytes], name: str = "m", *, sets: Sequence[bytes] = (), **fields: Any
    ) -> list[registry_pb2.SourceFile]:
        """Sends what is missing for a model of these files and of the sets that `fields` name; the files as they are registered."""
        listed = [source_file(path, data) for path, data in files.items()]
        request = registry_pb2.RegisterModelRequest(name=name, directory=registry_pb2.DirectorySource(files=listed), **fields)
        answer = await self.stub.BeginUpload(registry_pb2.BeginUploadRequest(registration=request))
        by_digest = {blake3(d).hexdigest(): d for d in (*files.values(), *sets)}

        async def pieces() -> AsyncIterator[registry_pb2.UploadFilesRequest]:
            for digest in answer.missing_digests:
                data = by_digest[digest]
                for offset in range(0, max(1, len(data)), 1 << 20):
                    yield registry_pb2.UploadFilesRequest(digest=digest, offset=offset, data=data[offset : offset + (1 << 20)])

        if answer.missing_digests:
            await self.stub.UploadFiles(pieces(), timeout=120.0)
        return listed

    async def register(
        self, name: str, source: Any, *, wait: bool = False, sets: Sequence[bytes] = (), **fields: Any
    ) -> list[registry_pb2.JobEvent]:
        """`source`: files by path, or a BuilderSource; `sets`: the bytes of what `fields` name. All events."""
        request = registry_pb2.RegisterModelRequest(name=name, wait_for_variants=wait, **fields)
        if isinstance(source, registry_pb2.BuilderSource):
            request.builder.CopyFrom(source)
        else:
            request.directory.files.extend(await self.upload(source, name, sets=sets, **fields))
        return [event async for event in self.stub.RegisterModel(request, timeout=280.0)]

    async def model(self, name: str) -> registry_pb2.ModelInfo:
        return (await self.stub.GetModel(registry_pb2.GetModelRequest(name=name))).model


class BakingNode(node_pb2_grpc.NodeAgentServicer):
    """Answers `Bake` as a node agent does, with the runtime's own baking, in this process. `errors`: raised first, one a call."""

    def __init__(self, repository: Repository, folder: Path, classes: str) -> None:
        self.repository = repository
        self.folder = folder
        self.classes = BuildClass(classes)
        self.errors: list[Exception] = []
        self.baked: list[str] = []

    async def Bake(self, request: node_pb2.BakeRequest, context: Any) -> AsyncIterator[node_pb2.BakeEvent]:
        yield node_pb2.BakeEvent(progress="fetched")
        if self.errors:
            raise self.errors.pop(0)
        self.baked.append(request.artifact_digest)
        found, said = await asyncio.to_thread(self._bake, request)
        for digest, data in found:
            if not self.repository.has(digest):
                for offset in range(0, len(data), 1 << 20):
                    piece = node_pb2.BakeEvent.Blob(
                        digest=digest, offset=offset, data=data[offset : offset + (1 << 20)], size_bytes=len(data)
                    )
                    yield node_pb2.BakeEvent(blob=piece)
            last = digest
        agreement = common_pb2.Agreement(**{name: value for name, value in said["agreement"].items() if value is not None})
        baked = node_pb2.Baked(artifact_digest=last, build_class=self.classes, agreement=agreement, notes=said["notes"])
        yield node_pb2.BakeEvent(baked=baked)

    def _bake(self, request: node_pb2.BakeRequest) -> tuple[list[tuple[Digest, bytes]], dict[str, Any]]:
        store, out = self.folder / "store", self.folder / f"out-{len(self.baked)}"
        export = Digest(request.artifact_digest)
        sets = {"--evaluation": request.evaluation.digest, "--calibration": request.calibration.digest}
        wanted = [export, *(blob.digest for blob in decode(self.repository.read(export)).blobs()), *filter(None, sets.values())]
        (store / "blobs").mkdir(parents=True, exist_ok=True)
        for digest in wanted:
            (store / "blobs" / digest).write_bytes(self.repository.read(Digest(digest)))
        # in a process of its own, as a node agent does it: ONNX Runtime's thread pools are set once per process
        command = ["--source", str(store / "blobs" / export), "--store", str(store), "--out", str(out)]
        command += ["--max-batch", str(request.max_batch), "--recipe", request.recipe, "--metric", request.metric]
        command += [word for option, digest in sets.items() if digest for word in (option, str(store / "blobs" / digest))]
        done = subprocess.run([sys.executable, "-m", "tessera.runtime.bake", *command], check=False, capture_output=True, timeout=120)
        said = json.loads(done.stdout.splitlines()[-1])
        if "kind" in said:
            raise error_of(said["kind"], said["message"])
        name = digest_of((out / "artifact.json").read_bytes())
        blobs = [(Digest(path.name), path.read_bytes()) for path in sorted(out.iterdir()) if len(path.name) == 64 and path.name != name]
        # this machine plays every class
        artifact = encode_artifact(replace(decode((out / name).read_bytes()), build_class=self.classes))
        return [*blobs, (digest_of(artifact), artifact)], said


@asynccontextmanager
async def joined(node: BakingNode, name: str, coordinator: EtcdCoordinator) -> AsyncIterator[BakingNode]:
    """The node answers, and is in etcd, as long as the block runs."""

    def add(server: grpc.aio.Server) -> None:
        node_pb2_grpc.add_NodeAgentServicer_to_server(node, server)

    server = RpcServer("127.0.0.1:0", handlers=[add], service_names=["tessera.api.node.v1.NodeAgent"])
    await server.start()
    record = NodeRecord(
        NodeId(name),
        "host",
        server.address,
        "127.0.0.1:2",
        "127.0.0.1:1",
        node.classes,
        ProfileClass("p"),
        ("aten", "ort"),
        2,
        1 << 30,
        DOMAIN,
    )
    key = keys.node(DOMAIN, record.node_id)
    revision = await coordinator.transact([ModRevisionIs(key, 0)], [Put(key, encode(record))])
    try:
        yield node
    finally:
        await coordinator.transact([ModRevisionIs(key, revision)], [Delete(key)])
        await server.stop(0.5)
