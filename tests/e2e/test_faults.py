"""kill -9 of everything, one after another, under requests whose every answer is checked; and bytes that rot."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import e2e_models
import numpy as np
import psutil
import pytest
from e2e_load import Load
from e2e_models import Net, agrees
from e2e_platform import Platform, tessera, until

from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.repository.artifacts import decode
from tessera.sdk import Client, TesseraError, Unavailable

MODEL = "net@1/ort-fp32"
COLD = "net@1/aten-fp32"
"""Another instance than the one under load: what starts it anew does not disturb the load."""


@pytest.fixture
def client(fragile: Platform) -> Iterator[Client]:
    with fragile.client() as found:
        yield found


@pytest.fixture
def load(fragile: Platform, net: Net) -> Iterator[Load]:
    with Load(fragile, MODEL, net) as found:
        yield found


def instance_of(client: Client, reference: str = MODEL) -> Any:
    """The ready instance of a variant."""
    model, _, variant = reference.partition("@1/")

    def ready() -> list[Any]:
        return [i for _, i in client.instances() if (i.variant.model, i.variant.variant, i.state) == (model, variant, "ready")]

    (found,) = until(ready, f"an instance of {reference} is ready")
    return found


def stop(client: Client, reference: str) -> None:
    """Stops whatever serves a variant, so that the next request is a cold start."""
    model, _, variant = reference.partition("@1/")
    for node, found in client.instances():
        if (found.variant.model, found.variant.variant, found.state) == (model, variant, "ready"):
            client.stop_instance(node, found.instance_id)


def cold_start(client: Client, net: Net, reference: str = COLD, timeout_s: float = 60.0) -> str:
    """Asks something that nobody serves now; returns its start path."""
    images = e2e_models.images(3)
    answer = client.infer(reference, {"image": images}, timeout_s=timeout_s)
    (output,) = answer.outputs.values()
    assert agrees(output, net.eager(images))
    return answer.start_path


def names(client: Client) -> set[str]:
    return {model.name for model in client.models()}


@pytest.mark.etcd
def test_etcd_killed_and_started_again_costs_nothing(fragile: Platform, client: Client, load: Load, net: Net) -> None:
    stop(client, COLD)
    serving, known = instance_of(client), names(client)
    pid = fragile.kill("etcd")
    assert cold_start(client, net) in {"bind", "fork"}, "the last leader goes on under its term"
    load.progress()
    fragile.until_restarted("etcd", pid)
    load.progress()
    again = instance_of(client)
    assert (again.instance_id, again.generation, again.pid) == (serving.instance_id, serving.generation, serving.pid)
    assert names(client) == known
    client.set_alias("after-etcd", "net")
    client.infer("after-etcd", {"image": e2e_models.images(1)})
    client.delete_alias("after-etcd")
    load.progress()
    assert load.errors == []


def test_a_killed_runtime_costs_what_it_executed_one_error(fragile: Platform, client: Client, load: Load) -> None:
    for _ in range(2):  # a third time would be the variant's own fault, and slowed down
        victim, errors_before = instance_of(client), len(load.errors)
        os.kill(victim.pid, signal.SIGKILL)
        load.progress()
        errors = load.errors[errors_before:]
        assert len(errors) <= load.threads, f"at most one for each request that was executing: {errors}"
        assert all(isinstance(error, Unavailable) and victim.instance_id in str(error) for error in errors), errors
        served = instance_of(client)
        assert served.pid != victim.pid
        assert served.generation != victim.generation


def test_a_killed_agent_adopts_its_runtimes(fragile: Platform, client: Client, load: Load, net: Net) -> None:
    client.infer(COLD, {"image": e2e_models.images(1)})
    before = {i.instance_id: (i.generation, i.pid, i.runtime_id) for _, i in client.instances() if i.state == "ready"}
    pid = fragile.kill("node-agent-0")
    load.progress()
    fragile.until_restarted("node-agent-0", pid)
    load.progress()
    after = {i.instance_id: (i.generation, i.pid, i.runtime_id) for _, i in client.instances() if i.state == "ready"}
    assert after == before
    stop(client, COLD)
    assert cold_start(client, net) in {"bind", "fork"}, "the next agent starts things"
    load.progress()
    assert load.errors == []


def test_clients_reconnect_to_a_gateway_that_was_killed(fragile: Platform, client: Client, load: Load, net: Net) -> None:
    serving = instance_of(client)
    pid = fragile.kill("gateway")
    fragile.until_restarted("gateway", pid)
    load.progress()
    after = len(load.errors)
    load.progress()
    assert len(load.errors) == after, "errors end with its absence"
    assert all(isinstance(error, Unavailable) for error in load.errors), load.errors
    again = instance_of(client)
    assert (again.instance_id, again.generation, again.pid) == (serving.instance_id, serving.generation, serving.pid)
    stop(client, COLD)
    assert cold_start(client, net) in {"bind", "fork"}


def leader_of(client: Client) -> str:
    """The name of the process that leads."""
    addresses = [row.address for row in client.platform().services if (row.kind, row.detail) == ("scheduler", "leader")]
    return "" if len(addresses) != 1 else "scheduler" if addresses[0].endswith("11") else "scheduler-standby"


def test_a_killed_leader_is_followed_by_the_standby(fragile: Platform, client: Client, load: Load, net: Net) -> None:
    stop(client, COLD)
    leader = until(lambda: leader_of(client), "a scheduler leads")
    pid = fragile.kill(leader)
    assert cold_start(client, net) in {"bind", "fork"}
    load.progress()
    fragile.until_restarted(leader, pid)
    until(lambda: leader_of(client) not in {"", leader}, "the standby leads")
    stop(client, COLD)
    assert cold_start(client, net) in {"bind", "fork"}
    load.progress()
    assert load.errors == []


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def importers(platform: Platform) -> list[psutil.Process]:
    """Sandboxes of this platform's registry."""
    try:
        children = psutil.Process(platform.process("registry")["pid"]).children(recursive=True)
        return [child for child in children if "tessera.registry.importer" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def test_an_import_whose_registry_was_killed_is_resumed(fragile: Platform, client: Client, load: Load, sources: Path) -> None:
    done: list[Any] = []
    command = ("model", "register", "sibling", str(sources / "sibling.pt2"), "--wait")
    thread = threading.Thread(target=lambda: done.append(fragile.tessera(*command)))
    thread.start()
    sandbox = until(lambda: importers(fragile), "the import runs")[0]
    pid = fragile.kill("registry")
    thread.join(60)
    assert done, "the client is told at once"
    assert done[0].returncode == 1
    assert "Traceback" not in done[0].stderr
    assert done[0].stderr.startswith("error: ")
    until(lambda: is_gone(sandbox), "the sandbox goes with its registry")
    fragile.until_restarted("registry", pid)
    try:
        until(lambda: "sibling" in names(client), "the import is resumed", 120)
        result = client.register("sibling", sources / "sibling.pt2", wait=True)
        assert result.unchanged
        assert {variant.key.variant: variant.state for variant in result.variants} == {"aten-fp32": "ready", "ort-fp32": "ready"}
        images = e2e_models.images(2)
        (output,) = client.infer("sibling", {"image": images}).outputs.values()
        assert agrees(output, Net(2).eager(images))
        load.progress()
        assert load.errors == []
    finally:
        if "sibling" in names(client):
            client.delete_model("sibling")


@pytest.mark.parametrize("reference", [MODEL, COLD])
def test_corrupted_bytes_are_quarantined_fetched_again_and_never_served(
    fragile: Platform, client: Client, net: Net, reference: str
) -> None:
    client.infer(reference, {"image": e2e_models.images(1)})
    stop(client, reference)
    variant = reference.rpartition("/")[2]
    (row,) = [row for row in client.model("net").versions[0].variants if row.key.variant == variant]
    repository = Repository(fragile.layout.repository_url)
    artifact = decode(repository.read(Digest(row.artifact_digest)))
    largest = max((ref for ref in artifact.tensors if ref.pack_offset is None), key=lambda ref: ref.size_bytes)
    (file,) = [path for path in store_blobs(fragile) if path.name == largest.digest]
    before = client.nodes()[0].stores[0]
    flip(file)
    assert cold_start(client, net, reference) in {"bind", "fork"}
    after = until(lambda: changed_store(client, before), "the node reports it (its store is counted every few seconds)")
    assert after.quarantined == before.quarantined + 1
    assert after.fetched_bytes >= before.fetched_bytes + largest.size_bytes
    assert instance_of(client, reference).fetched
    (whole,) = [path for path in store_blobs(fragile) if path.name == largest.digest]
    assert whole.stat().st_mode & 0o777 == 0o444
    assert whole.read_bytes() == repository.read(largest.digest)
    assert cold_start(client, net, reference) == "warm"


def changed_store(client: Client, before: Any) -> Any:
    """What the store has been through, once it has quarantined something more."""
    store = client.nodes()[0].stores[0]
    return store if store.quarantined > before.quarantined else None


def store_blobs(platform: Platform) -> list[Path]:
    """The files of the node's store."""
    return list((platform.store_folder() / "blobs").iterdir())


def flip(file: Path) -> None:
    """Turns some bits of a read-only file, in place."""
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.seek(100)
        data = opened.read(64)
        opened.seek(100)
        opened.write(bytes(byte ^ 0xFF for byte in data))
    file.chmod(0o444)


def test_what_a_killed_supervisor_leaves_serves_on_and_is_taken_down(fragile: Platform, client: Client, net: Net, tmp_path: Path) -> None:
    """Ends the second platform; whoever needs it again brings it up again."""
    supervisor = fragile.supervisor
    assert supervisor is not None
    config = str(fragile.layout.config / "gateway.yaml")
    stranger = subprocess.Popen(["tail", "-f", config], stdout=subprocess.DEVNULL)
    with Load(fragile, MODEL, net) as load:
        supervisor.kill()
        until(lambda: is_gone(supervisor), "the supervisor is dead")
        load.progress()
        assert load.errors == []
    refused = tessera("up", "--detach", "--state", str(fragile.state), "--port-base", str(fragile.port_base), "--store", fragile.store)
    assert refused.returncode == 1
    assert "'tessera down' ends them" in refused.stderr
    (output,) = client.infer(MODEL, {"image": np.zeros((1, *e2e_models.IMAGE), np.float32)}).outputs.values()
    assert output.shape == (1, e2e_models.CLASSES)
    with pytest.raises(TesseraError):
        client.infer("no-such-model", {"image": np.zeros(1, np.float32)})
    assert fragile.leftovers(), "it runs still"
    try:
        elsewhere = {"TMPDIR": "/var/tmp", "XDG_RUNTIME_DIR": str(tmp_path)}
        done = tessera("down", "--state", str(fragile.state), env=elsewhere)
        assert (done.returncode, fragile.leftovers()) == (0, []), done.stderr
        assert "down; no process, socket, lease or tmpfs file is left" in done.stderr
        assert not fragile.store_folder().exists()
        assert stranger.poll() is None, "a program that only reads a file of the platform's goes on"
    finally:
        stranger.kill()
        stranger.wait()
