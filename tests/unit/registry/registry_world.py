"""The registry without a sandbox, a node or an etcd: each replaced by a fake that says what it did."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tessera.clock import SystemClock
from tessera.coord import keys
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.accuracy import Agreement
from tessera.domain.artifact import Artifact, Blob
from tessera.domain.ids import BuildClass, Digest, ModelName, NodeId, ProfileClass, TrustDomain
from tessera.domain.records import NodeRecord
from tessera.domain.signature import Signature, TensorSpec
from tessera.program import Stop, Tasks
from tessera.registry.adapters.blobs import StoredBlobs
from tessera.registry.adapters.uploads import UploadFolder
from tessera.registry.core.manifest import SourceFile
from tessera.registry.core.source import BuilderCall, Registration
from tessera.registry.importer.blobs import BlobFolder
from tessera.registry.loops.aliases import Aliases
from tessera.registry.loops.catalogue import Catalogue
from tessera.registry.loops.imports import Imports, Limits
from tessera.registry.loops.joblog import JobLog, JobProgress
from tessera.registry.loops.shelf import Shelf
from tessera.registry.loops.variants import VariantMaker
from tessera.registry.ports import BakeBlob, BakeDone, BakeEvent, BakeOrder, BakeProgress, Imported, OnProgress, Sets
from tessera.repository import Repository
from tessera.repository.artifacts import encode as encode_artifact
from tessera.tensorstore.artifact import digest_of
from tessera.testing.coord import FakeCoordinator, FakeEtcd

DOMAIN = TrustDomain("default")
CLASS_A, CLASS_B = BuildClass("x86_64-avx2-ort1.32.0"), BuildClass("x86_64-avx512_vnni-ort1.32.0")
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


def tensor(fill: int, size: int = 8192) -> bytes:
    return bytes([fill]) * size


AGREEMENT = Agreement(1e-6, 1.0, 3)
LOSSY = Agreement(0.02, 0.999, 32)


def onnx_graph(slots: Iterable[str], operators: Sequence[str]) -> bytes:
    """An ONNX model of nodes of these operators, told from others by its slots' names."""
    from onnx import helper

    nodes = [helper.make_node(operator, [], []) for operator in operators]
    return helper.make_model(helper.make_graph(nodes, ",".join(slots), [], [])).SerializeToString(deterministic=True)


def write_artifact(
    folder: BlobFolder,
    backend: str,
    tensors: dict[str, bytes],
    build_class: BuildClass | None = None,
    *,
    precision: str = "fp32",
    operators: Sequence[str] = (),
) -> Digest:
    """An artifact with tensors that are FP32 vectors."""
    from tessera.registry.importer.blobs import store_tensors as write_tensors

    refs, pack = write_tensors(folder, [(slot, "FP32", (len(raw) // 4,), memoryview(raw)) for slot, raw in tensors.items()])
    graph = folder.put(onnx_graph(tensors, operators))
    dialect = "aten" if backend == "aten" else "onnx"
    return folder.put(encode_artifact(Artifact(backend, precision, dialect, graph, pack, refs, SIGNATURE, build_class, 32))).digest


class FakeImporter:
    """Makes an artifact of the uploaded files, each a tensor; `errors` are raised first, one an import."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.runs: list[str] = []
        self.sets: list[dict[str, bytes]] = []
        self.agreement: Agreement | None = None
        self.onnx = True
        self.operators: Sequence[str] = ()
        self.gate: asyncio.Event | None = None

    async def run(self, job_folder: Path, source: Path, builder: BuilderCall | None, sets: Sets, on_progress: OnProgress) -> Imported:
        self.runs.append(job_folder.name)
        self.sets.append({path.name: path.read_bytes() for path in (sets.evaluation, sets.calibration) if path is not None})
        on_progress("exporting", 0.5)
        if self.gate is not None:
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        folder = BlobFolder(job_folder / "out" / "blobs")
        tensors = {p.relative_to(source).as_posix(): p.read_bytes() for p in sorted(source.rglob("*")) if p.is_file()}
        aten = write_artifact(folder, "aten", tensors)
        onnx = write_artifact(folder, "onnx", tensors, operators=self.operators) if self.onnx else None
        blobs = tuple(Blob(Digest(digest), size) for digest, size in folder.listing())
        reason = "" if self.onnx else "ONNX export failed: no such operator"
        return Imported(job_folder / "out" / "blobs", "directory", aten, onnx, reason, blobs, (), self.agreement)


class FakeBaker:
    """Bakes by giving every tensor of the export another first byte; `errors` are raised first, one a bake. Recipes other than `ort-fp32`
    wait for `gate` and are `agreement` away from what was registered."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository = repository
        self.folder = folder
        self.errors: list[Exception] = []
        self.bakes: list[tuple[str, BuildClass]] = []
        self.orders: list[BakeOrder] = []
        self.ended_early: list[str] = []
        self.withhold = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.agreement = LOSSY
        self.exact_agreement = AGREEMENT
        self.refused: dict[str, Exception] = {}
        """Recipe -> what it fails with, always."""

    async def bake(self, node: NodeRecord, order: BakeOrder, timeout_s: float) -> AsyncGenerator[BakeEvent, None]:
        self.bakes.append((node.node_id, node.build_class))
        self.orders.append(order)
        base = order.recipe == "ort-fp32"
        yield BakeProgress("optimising")
        if self.errors:
            raise self.errors.pop(0)
        if order.recipe in self.refused:
            raise self.refused[order.recipe]
        try:
            if not base:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.ended_early.append(order.recipe)
            raise
        shutil.rmtree(self.folder, ignore_errors=True)
        made = BlobFolder(self.folder)
        precision = "int8" if "int8" in order.recipe else "fp32"
        tensors = {"baked": b"\x01" + tensor(len(self.bakes))[1:]}
        artifact = write_artifact(made, "ort", tensors, node.build_class, precision=precision)
        for digest, size in made.listing():
            data = (self.folder / digest).read_bytes()
            if self.withhold and digest != artifact:
                continue
            for offset in range(0, size, 1000):
                yield BakeBlob(Digest(digest), offset, data[offset : offset + 1000], size)
        yield BakeDone(artifact, node.build_class, self.exact_agreement if precision == "fp32" else self.agreement, "" if base else "notes")


@dataclass
class Registry:
    """All of it, over one folder and one fake etcd; `crash` forgets everything that was in memory."""

    folder: Path
    server: FakeEtcd = field(default_factory=FakeEtcd)
    recipes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.repository = Repository(f"file://{self.folder}/repository")
        self.importer = FakeImporter()
        self.clock = SystemClock()
        self.baker = FakeBaker(self.repository, self.folder / "baked")

    async def __aenter__(self) -> Registry:
        self.stop = Stop()
        self.tasks = Tasks(self.stop)
        await self.tasks.__aenter__()
        self.coordinator = FakeCoordinator(self.server)
        self.catalogue = Catalogue(self.coordinator)
        self.aliases = Aliases(self.coordinator, self.clock)
        self.log = JobLog(16)
        self.blobs = StoredBlobs(self.repository)
        self.shelf = Shelf(self.catalogue, self.blobs)
        self.uploads = UploadFolder(self.folder / "uploads", 1 << 20)
        self.variants = VariantMaker(
            clock=self.clock, coordinator=self.coordinator, catalogue=self.catalogue, baker=self.baker, blobs=self.blobs,
            shelf=self.shelf, log=self.log, work=self.folder / "work", domains=[DOMAIN], recipes=self.recipes, timeout_s=10.0, attempts=2,
        )  # fmt: skip
        self.imports = Imports(
            clock=self.clock, tasks=self.tasks, catalogue=self.catalogue, uploads=self.uploads, importer=self.importer, blobs=self.blobs,
            shelf=self.shelf, variants=self.variants, log=self.log, work=self.folder / "work", limits=Limits(2, 1),
            draw=iter("abcdefgh").__next__,
        )  # fmt: skip
        (self.folder / "work").mkdir(exist_ok=True)
        for view in self.variants.nodes.values():
            self.tasks.start("nodes", view.run())
        self.tasks.start("variants", self.variants.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.tasks.__aexit__(None, None, None)
        await self.coordinator.close()

    async def crash(self) -> None:
        """What a kill -9 leaves: etcd and the disk."""
        await self.tasks.aclose()
        await self.coordinator.close()
        await self.__aenter__()

    async def node(self, name: str, build_class: BuildClass) -> None:
        record = NodeRecord(
            NodeId(name),
            "host",
            "127.0.0.1:1",
            "127.0.0.1:3",
            "127.0.0.1:2",
            build_class,
            ProfileClass("p"),
            ("aten", "ort"),
            2,
            1 << 30,
            DOMAIN,
        )
        key = keys.node(DOMAIN, record.node_id)
        await self.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, encode(record))])

    async def leave(self, name: str) -> None:
        key = keys.node(DOMAIN, NodeId(name))
        found = await self.coordinator.get(key)
        assert found is not None
        await self.coordinator.transact([ModRevisionIs(key, found.mod_revision)], [Delete(key)])

    def upload(self, files: dict[str, bytes], domain: TrustDomain = DOMAIN) -> tuple[SourceFile, ...]:
        listed = tuple(SourceFile(path, len(data), digest_of(data)) for path, data in sorted(files.items()))
        for file in listed:
            if self.uploads.missing(domain, [file]):
                incoming = self.uploads.receive(domain, file.digest)
                incoming.write(0, files[file.path])
                incoming.finish()
        return listed

    def registration(self, name: str, files: dict[str, bytes], **fields: str) -> Registration:
        return Registration(DOMAIN, ModelName(name), fields.get("task", ""), fields.get("dataset", ""), None, self.upload(files))

    async def register(self, name: str, files: dict[str, bytes], *, wait: bool = False, **fields: str) -> list[JobProgress]:
        async with asyncio.timeout(10):
            return [event async for event in self.imports.register(self.registration(name, files, **fields), wait=wait)]

    async def versions(self, name: str, count: int) -> None:
        """That many versions of a model, without an export."""
        self.importer.onnx = False
        for fill in range(count):
            await self.register(name, {"w": tensor(fill + 1)})

    async def settled(self, check: object) -> None:
        """Waits until the async function answers true."""
        async with asyncio.timeout(10):
            while not await check():  # type: ignore[operator]
                await self.clock.sleep(0.01)


def stored(repository: Repository) -> set[Digest]:
    return {digest for digest, _ in repository.digests()}
