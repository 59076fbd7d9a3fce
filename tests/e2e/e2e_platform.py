"""One embedded platform, brought up and taken down by the `tessera` command as a user does it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tessera.cli.embedded.layout import Layout
from tessera.cli.embedded.leftovers import leftovers
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN
from tessera.sdk import Client
from tessera.tensorstore.mount import shm_folder_for

T = TypeVar("T")

FIRST_PORT_BASE, LAST_PORT_BASE, PORTS = 28_000, 29_900, 100
COMMAND_S = 150.0
"""Longer than `tessera up` or `tessera down` ever wait themselves."""


def free_port_base(domains: int = 1) -> int:
    """A base from which a platform of two nodes finds its ports free; below the range of ephemeral ports."""
    names = tuple(f"d{number}" for number in range(domains))
    bases = list(range(FIRST_PORT_BASE, LAST_PORT_BASE, PORTS))
    random.shuffle(bases)
    return next(base for base in bases if all(_is_free(port) for port in Layout(Path("/"), base, nodes=2, domains=names).ports()))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def until(condition: Callable[[], T], what: str, within_s: float = 60.0) -> T:
    """Polls until `condition()` is true and returns it."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.05)
    return found


def until_services_ready(client: Client, nodes: int, within_s: float) -> None:
    """Until every service says through the gateway that it is ready, none missing."""
    wanted = ["etcd", "gateway", *["node-agent"] * nodes, "profiler", "registry", "scheduler", "scheduler"]

    def ready() -> bool:
        try:
            found = client.platform().services
        except Exception:
            return False
        return sorted(service.kind for service in found) == wanted and all(service.ready for service in found)

    until(ready, "every service is ready", within_s)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of Tessera's, which would reach the platform."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TESSERA_")} | dict(extra or {})


def tessera(*words: str, env: Mapping[str, str] | None = None, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """Runs the CLI as a process of its own; neither its output nor its exit code is judged here."""
    command = [sys.executable, "-m", "tessera.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment(env), cwd="/", check=False)


class Platform:
    """The platform of a state folder.

    Args:
        state: where it keeps everything.
        env: settings of its processes, as `TESSERA_<FIELD>`. Variants beside the base ones are made where `TESSERA_RECIPES` says so.
    """

    def __init__(
        self,
        state: Path,
        store: str = "512M",
        env: Mapping[str, str] | None = None,
        nodes: int = 1,
        domains: tuple[str, ...] = (DEFAULT_TRUST_DOMAIN,),
        more_nodes: int = 0,
    ) -> None:
        self.state = state
        self.store = store
        self.nodes = nodes
        self.env = {"TESSERA_RECIPES": "[]", **(env or {})}
        self.port_base = free_port_base(len(domains))
        self.layout = Layout(state.resolve(), self.port_base, nodes, domains=domains, more_nodes=more_nodes)

    # Up and down

    @property
    def up_words(self) -> tuple[str, ...]:
        """`tessera up` in the foreground."""
        given = {"--state": self.state, "--port-base": self.port_base, "--store": self.store, "--nodes": self.nodes}
        given |= {"--more-nodes": self.layout.more_nodes} if self.layout.more_nodes else {}
        domains = [word for name in self.layout.domains for word in ("--trust-domain", name)]
        return ("up", *(str(word) for option in given.items() for word in option), *domains)

    def up(self) -> subprocess.CompletedProcess[str]:
        done = tessera(*self.up_words, "--detach", env=self.env)
        assert done.returncode == 0, done.stderr + self.last_words()
        return done

    def down(self) -> subprocess.CompletedProcess[str]:
        return tessera("down", "--state", str(self.state))

    @property
    def supervisor(self) -> psutil.Process | None:
        """The supervisor when it lives."""
        try:
            recorded = self.recorded()["supervisor"]
            process = psutil.Process(recorded["pid"])
            same = abs(process.create_time() - recorded["started_unix_s"]) < 2.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None

    def leftovers(self) -> list[str]:
        return leftovers(self.layout)

    def end(self) -> None:
        """By all means, also after a test that failed: nothing is left afterwards, or this says what."""
        if self.supervisor is not None or self.leftovers():
            done = self.down()
            left = self.leftovers()
            assert (done.returncode, left) == (0, []), (done.stderr, left, self.last_words())

    def last_words(self) -> str:
        """The ends of all logs, for a failed assertion."""
        logs = sorted((self.state / "logs").glob("*.log"))
        return "\n".join(f"== {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:]) for log in logs)

    # Talking to it

    def tessera(self, *words: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        return tessera(*words, "--state", str(self.state), timeout_s=timeout_s)

    def json(self, *words: str) -> Any:
        done = self.tessera(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def connect(self) -> Client:
        """A client that the caller closes."""
        return Client(state=self.state)

    @contextmanager
    def client(self) -> Iterator[Client]:
        with self.connect() as client:
            yield client

    def check_stores(self) -> None:
        """Every store of every node is sound, bytes and all."""
        done = self.tessera("node", "fsck", "--deep")
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def endpoint(self) -> str:
        return self.layout.endpoint

    @contextmanager
    def frozen(self, model: str, variant: str) -> Iterator[None]:
        """The runtimes that hold a ready instance of the variant stand still meanwhile (SIGSTOP): no request of it is answered."""
        with self.client() as client:
            found = [i for _, i in client.instances() if (i.variant.model, i.variant.variant, i.state) == (model, variant, "ready")]
        pids = {instance.pid for instance in found}
        assert pids, f"nothing serves {model}/{variant}"
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    # Its files

    def store_folder(self, node: int = 0) -> Path:
        """Where the node's store lies: mounted below the run folder, or a folder of /dev/shm."""
        mounted = self.layout.stores()[node]
        return mounted if (mounted / "blobs").is_dir() else shm_folder_for(mounted)

    # Its processes

    def recorded(self) -> Any:
        return json.loads((self.state / "platform.json").read_text())

    def process(self, name: str) -> Any:
        """What `platform.json` says about a process: pid, restarts, ..."""
        return next(process for process in self.recorded()["processes"] if process["name"] == name)

    def kill(self, name: str) -> int:
        """kill -9 of a process by its name; returns its pid."""
        pid: int = self.process(name)["pid"]
        os.kill(pid, signal.SIGKILL)
        return pid

    def until_restarted(self, name: str, pid: int) -> None:
        """Until the supervisor has started another one and every service says that it is ready."""
        until(lambda: self.process(name)["pid"] != pid, f"the supervisor starts {name} again")
        self.until_ready()

    def until_ready(self, within_s: float = 90.0) -> None:
        """Until every process of the platform counts as ready (`tessera status` exits with 0), none missing."""
        with self.client() as client:
            until_services_ready(client, self.nodes, within_s)
