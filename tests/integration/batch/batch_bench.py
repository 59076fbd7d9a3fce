"""A real etcd, a gateway and profilers as processes; behind the gateway a runtime's socket, whose model says ten times what it was told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tessera.coord import keys
from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.errors import InvalidInput, TesseraError
from tessera.domain.ids import Generation, ModelName, NodeId, RuntimeId, TrustDomain
from tessera.frames import FrameResponse, FrameServer, RequestHeader
from tessera.frames.openinference import OutputTensor, encode_response, parse_request
from tessera.program import host_id
from tessera.sdk import AsyncClient
from tessera.testing.builders import a_model, a_node, a_variant, a_variant_key, a_version, a_version_key, an_instance
from tessera.testing.etcd import free_port

DOMAIN = TrustDomain("default")
GENERATION = Generation(77)
WAIT_S = 40.0
TOKEN = "secret-of-the-test"


def images(rows: int) -> Any:
    """Row n is all n."""
    return np.broadcast_to(np.arange(rows, dtype=np.float32).reshape(-1, 1, 1, 1), (rows, 1, 8, 8)).copy()


class Runtime:
    """`delay_s` per request; `rows` are those that were answered, in the order in which they were."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.delay_s = 0.0
        self.rows: list[float] = []
        self.bad: set[float] = set()
        self.at_once = self.most_at_once = 0
        self._server: FrameServer | None = None

    async def start(self) -> None:
        self._server = await FrameServer.serve_unix(self.path, self._answer, target=RuntimeId("r1"))

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()

    async def _answer(self, header: RequestHeader, body: Any) -> FrameResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            request = parse_request(body)
            count = request.inputs[0].shape[0]
            values = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(count, -1)[:, 0]
            await asyncio.sleep(self.delay_s)
        finally:
            self.at_once -= 1
        if self.bad & set(values.tolist()):
            return FrameResponse.of_error(InvalidInput("inputs image", None, "is bad"))
        self.rows += values.tolist()
        logits = np.repeat(values[:, np.newaxis] * 10, 10, axis=1).astype(np.float32)
        output = OutputTensor("logits", "FP32", logits.shape, logits.tobytes())
        return FrameResponse(0, count, 10, 10, body=encode_response(request.model_name, "1", request.id, [output]))


class Bench:
    def __init__(self, etcd: EtcdProcess, folder: Path) -> None:
        self.etcd = etcd
        self.folder = folder
        self.jobs = folder / "jobs" / DOMAIN
        self.coordinator = EtcdCoordinator([etcd.endpoint])
        self.runtime = Runtime(folder / "data.sock")
        self.public, self.admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.client = AsyncClient(self.public, admin_endpoint=self.admin, token=TOKEN)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.profiler_settings: dict[str, Any] = {}
        self.environment: dict[str, str] = {}

    async def start(self) -> None:
        await self.runtime.start()
        key = a_variant_key()
        await self.put(keys.model(DOMAIN, ModelName("digits")), a_model())
        await self.put(keys.version(a_version_key()), a_version())
        await self.put(keys.variant(key), a_variant(build_class=None))
        await self.put(keys.node(DOMAIN, NodeId("node-0")), a_node(host_id=host_id()))
        instance = an_instance(
            host_id=host_id(), unix_path=self.runtime.path, generation=GENERATION, runtime_id=RuntimeId("r1"), relay_address=""
        )
        await self.put(keys.instance(DOMAIN, instance.node_id, instance.instance_id), instance)
        token = self.folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        self.launch("gateway", "gateway", address=self.public, admin_address=self.admin, metrics_address="", token_file=str(token))
        self.profiler("profiler")
        await self.until(self.client.is_ready, "the gateway is ready")
        await self.until(self.client.batches, "the profiler answers", anything=True)

    def profiler(self, name: str) -> None:
        self.launch(
            name,
            "profiler",
            address=f"127.0.0.1:{free_port()}",
            lease_ttl_s=2.0,
            batch_folder=str(self.folder / "jobs"),
            batch_part_rows=8,
            batch_calm_s=1.0,
            **self.profiler_settings,
        )

    def launch(self, name: str, module: str, **settings: Any) -> None:
        import yaml

        config = self.folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump({"etcd_endpoints": [self.etcd.endpoint], **settings}))
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", f"tessera.{module}", "--config", str(config)]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **self.environment})

    def end(self, name: str, how: signal.Signals) -> int:
        process = self.processes.pop(name)
        process.send_signal(how)
        return process.wait(timeout=WAIT_S)

    async def close(self) -> None:
        for name in list(self.processes):
            self.end(name, signal.SIGKILL)
        await self.client.close()
        await self.coordinator.close()
        await self.runtime.close()

    async def put(self, key: str, record: object) -> None:
        found = await self.coordinator.get(key)
        await self.coordinator.transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, encode(record))])

    async def remove(self, key: str) -> None:
        found = await self.coordinator.get(key)
        assert found is not None
        await self.coordinator.transact([ModRevisionIs(key, found.mod_revision)], [Delete(key)])

    async def until(self, look: Callable[[], Any], what: str, *, anything: bool = False) -> Any:
        """Polls until `look()` is true (or, with `anything`, answers)."""
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    try:
                        found = await look()
                        if found or anything:
                            return found
                    except TesseraError:
                        pass
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logs = "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))
            raise AssertionError(f"not within {WAIT_S} s: {what}\n{logs}") from None

    async def state(self, job_id: str, *states: str) -> Any:
        async def look() -> Any:
            found = await self.client.batch(job_id)
            return found if found.state in states else None

        return await self.until(look, f"job {job_id} is {' or '.join(states)}")

    async def written(self, job_id: str, parts: int) -> None:
        async def look() -> bool:
            return (await self.client.batch(job_id)).parts >= parts

        await self.until(look, f"job {job_id} has {parts} parts")

    def save(self, rows: int) -> str:
        np.savez(self.jobs / "in.npz", image=images(rows))
        return str(self.jobs / "in.npz")

    def logits(self, name: str) -> list[float]:
        with np.load(self.jobs / name) as found:
            return [float(value) for value in found["logits"][:, 0]]
