"""One node agent with its zygotes, runtimes and store, driven directly: what a benchmark of memory measures, and nothing else on the way.

It is the real agent over the real etcd; started by its RPC as the scheduler's leader does it, asked over its runtimes' sockets as a gateway
on the same host does it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import numpy as np

from benchmarks.made import FOLDER
from tessera import rpc
from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.coord.binary import EtcdProcess, find_etcd
from tessera.domain.errors import TesseraError
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, Digest, domain_tag
from tessera.frames import FrameClient, RequestHeader
from tessera.node_agent.core.containers import RUN_LABEL
from tessera.tensorstore.mount import shm_folder_for
from tessera.testing.etcd import free_port

START_S = 60.0
HOUR_MS = 3_600_000
BUDGET_US = 120_000_000


@dataclass(frozen=True)
class Memory:
    """By /proc/PID/smaps. `private_bytes` and `proportional_bytes` leave the store's files out, `shared_bytes` are these files' pages."""

    private_bytes: int = 0
    proportional_bytes: int = 0
    shared_bytes: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.private_bytes + other.private_bytes,
            self.proportional_bytes + other.proportional_bytes,
            self.shared_bytes + other.shared_bytes,
        )


def memory_of(pid: int, store: Path) -> Memory:
    """The store's files are told by their device: in a container they have another path."""
    private = proportional = shared = 0
    in_store = False
    device = store.stat().st_dev
    device_text = f"{os.major(device):02x}:{os.minor(device):02x}"
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return Memory()
    for line in lines:
        name, _, value = line.partition(":")
        if "-" in name.split(" ", 1)[0]:
            words = line.split(maxsplit=5)
            in_store = len(words) == 6 and words[3] == device_text and "/blobs/" in words[5]
        elif name == "Rss" and in_store:
            shared += int(value.split()[0])
        elif name == "Pss" and not in_store:
            proportional += int(value.split()[0])
        elif name in ("Private_Clean", "Private_Dirty") and not in_store:
            private += int(value.split()[0])
    return Memory(private * 1024, proportional * 1024, shared * 1024)


class Node:
    """One agent; `store_bytes` is its store's budget."""

    def __init__(self, agent: subprocess.Popen[bytes], address: str, run: Path, log: Path, in_containers: bool) -> None:
        self._agent = agent
        self._in_containers = in_containers
        self._stub = node_pb2_grpc.NodeAgentStub(rpc.connect(address))
        self._run = run
        self._log = log
        self._clients: dict[str, FrameClient] = {}
        self._started = 0

    async def until_up(self) -> None:
        async with asyncio.timeout(START_S):
            while True:
                if self._agent.poll() is not None:
                    raise SystemExit(f"the node agent ended: {self._log.read_text()[-2000:]}")
                try:
                    await self.status()
                    return
                except TesseraError:
                    await asyncio.sleep(0.1)

    async def status(self) -> node_pb2.NodeStatus:
        answer: node_pb2.NodeStatus = (await self._stub.GetStatus(node_pb2.GetStatusRequest(), timeout=30)).status
        return answer

    async def start(self, artifact: Digest, sources: Sequence[node_pb2.Source] = ()) -> node_pb2.Instance:
        """A ready instance, bound into a runtime that has room; bytes that are missing come from `sources` first."""
        self._started += 1
        request = node_pb2.StartInstanceRequest(
            term=common_pb2.Term(cluster_id=1, revision=1),
            instance_id=f"bench-{self._started}",
            generation=self._started,
            variant=common_pb2.VariantKey(trust_domain="default", model=f"sibling{self._started}", version=1, variant="any"),
            artifact_digest=artifact,
            start_path="bind",
            expires_after_ms=HOUR_MS,
            budget_us=BUDGET_US,
            sources=sources,
        )
        answer: node_pb2.Instance = (await self._stub.StartInstance(request, timeout=120)).instance
        return answer

    async def ask(self, instance: node_pb2.Instance, inputs: Sequence[tuple[str, str, np.ndarray]]) -> list[np.ndarray]:
        """The outputs for (name, datatype, array) inputs, floats all of them. Raises TesseraError: the runtime's word."""
        client = self._clients.get(instance.runtime_id)
        if client is None:
            path = instance.endpoint.unix_path
            client = self._clients[instance.runtime_id] = await FrameClient.connect_unix(path, target=instance.runtime_id)
        message = ModelInferRequest(model_name="m")
        for name, datatype, array in inputs:
            message.inputs.add(name=name, datatype=datatype, shape=array.shape)
            message.raw_input_contents.append(array.tobytes())
        response = await client.request(RequestHeader(instance.generation, BUDGET_US), message.SerializeToString())
        error = response.error()
        if error is not None:
            raise error
        answer = ModelInferResponse.FromString(bytes(response.body))
        pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
        return [np.frombuffer(raw, np.float32).reshape(output.shape) for output, raw in pairs]

    def processes(self) -> list[int]:
        """Zygotes and runtimes: everything forked from a zygote has its command line, a container has the run folder's label."""
        found = self._containers() if self._in_containers else []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            except OSError:
                continue
            if b"tessera.runtime.zygote" in command and os.fsencode(self._run) in command:
                found.append(int(entry.name))
        return found

    def _containers(self) -> list[int]:
        engine = docker.from_env()
        try:
            found = engine.containers.list(filters={"label": RUN_LABEL})
            lists = [each.top(ps_args="-o pid") for each in found if str(self._run) in each.labels[RUN_LABEL]]
            return [int(line[0]) for each in lists for line in each["Processes"]]
        finally:
            engine.close()

    def store_bytes(self) -> int:
        """Allocated bytes of the store's files."""
        return sum(path.stat().st_blocks * 512 for path in self.store_folder.rglob("*") if path.is_file())

    @property
    def store_folder(self) -> Path:
        mounted = self._run / f"store-{domain_tag(DEFAULT_TRUST_DOMAIN)}"
        return mounted if (mounted / "blobs").is_dir() else shm_folder_for(mounted)

    def memory(self) -> Memory:
        """Of all zygotes and runtimes, as of now."""
        return sum((memory_of(pid, self.store_folder) for pid in self.processes()), Memory())

    async def end(self) -> None:
        for client in self._clients.values():
            client.close()
        self._agent.terminate()
        await asyncio.to_thread(self._agent.wait, 120)


@asynccontextmanager
async def node(store_bytes: int, **settings: Any) -> AsyncIterator[Node]:
    """A node of its own for as long as the context lasts; `settings` are fields of the node agent's configuration."""
    run = Path(tempfile.mkdtemp(prefix="tsbn-"))
    folder = Path(tempfile.mkdtemp(prefix="node-", dir=FOLDER))
    try:
        etcd = EtcdProcess(find_etcd(), folder / "etcd", free_port(), free_port())
        await etcd.start()
        try:
            address = f"127.0.0.1:{free_port()}"
            config = {
                "node_id": "bench",
                "address": address,
                "start_address": f"127.0.0.1:{free_port()}",
                "relay_address": "127.0.0.1:0",
                "peer_address": f"127.0.0.1:{free_port()}",
                "etcd_endpoints": [etcd.endpoint],
                "repository_url": f"file://{FOLDER / 'repository'}",
                "state_folder": str(folder / "state"),
                "run_folder": str(run),
                "stores": [{"trust_domain": "default", "budget_bytes": store_bytes}],
                "runtime_user": "own",
                "log_level": "warning",
                **settings,
            }
            (folder / "config.yaml").write_text(json.dumps(config))
            log = folder / "agent.log"
            with log.open("wb") as file:
                command = [sys.executable, "-m", "tessera.node_agent", "--config", str(folder / "config.yaml")]
                agent = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)  # noqa: ASYNC220 - nothing else runs
            found = Node(agent, address, run, log, settings.get("runtimes") == "container")
            try:
                await found.until_up()
                yield found
            finally:
                await found.end()
        finally:
            await etcd.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
