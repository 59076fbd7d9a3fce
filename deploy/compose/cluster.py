"""One cluster: the Compose files, the secret, and the way up and down. Works with Compose v2 and with docker-compose 1.29."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.compose import engine
from deploy.compose.engine import EngineError

FOLDER = Path(__file__).resolve().parent
PORTS = {"TESSERA_PORT": 1, "TESSERA_METRICS_PORT": 2, "TESSERA_ADMIN_PORT": 3}
"""Setting of a published port to its place above the base."""
LOG_LINES = 15
POLL_S = 0.5


def compose_command() -> list[str]:
    """Compose v2 where the engine's client has it, else docker-compose. Raises: EngineError: neither is there."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise EngineError("neither `docker compose` nor docker-compose is installed")


class Cluster:
    """A Compose project.

    Args:
        secrets_folder: where its admin token lies; made for its owner alone.
        overrides: names of further Compose files, e.g. `gpu` for compose.gpu.yaml.
        settings: variables of the Compose files, over those of this process's environment.
        say: gets a line for each thing that happened.
    """

    def __init__(
        self,
        project: str,
        port_base: int,
        secrets_folder: Path,
        *,
        overrides: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        say: Callable[[str], None],
    ) -> None:
        self.project = project
        self.endpoint = f"127.0.0.1:{port_base + PORTS['TESSERA_PORT']}"
        self.token_file = secrets_folder / "admin_token"
        self._files = [FOLDER / "compose.yaml", *(FOLDER / f"compose.{name}.yaml" for name in overrides)]
        self._settings = {name: str(port_base + offset) for name, offset in PORTS.items()} | dict(settings or {})
        self._say = say

    def up(self, within_s: float) -> None:
        """Starts everything and waits until every service is healthy, with a line for each that is.

        Raises:
            EngineError: something does not start or is not healthy in time; with its last words.
        """
        self._write_token()
        log = self.token_file.parent / "compose.log"
        with log.open("wb") as words:
            starting = subprocess.Popen(self._command("up", "-d", "--no-build"), env=self._environment(), stdout=words, stderr=words)
        try:
            self._until_healthy(starting, log, within_s)
        finally:
            if starting.poll() is None:
                starting.kill()
            starting.wait()

    def down(self) -> list[str]:
        """Takes everything away, volumes, runtimes' containers and added nodes included; returns what is left all the same, in words."""
        self._run("stop")
        engine.stop(engine.pooled(self.project))
        engine.remove(engine.runtimes(self.project))
        engine.remove(engine.pooled(self.project))
        self._run("down", "-v", "--remove-orphans")
        return engine.left_of(self.project)

    def container(self, service: str) -> str:
        """The id of a service's container. Raises: EngineError: it has none."""
        for each in engine.containers(self.project):
            if each.service == service:
                return each.container_id
        raise EngineError(f"{self.project} has no container of {service}")

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    def logs(self) -> str:
        """The last words of every service."""
        found = []
        for each in engine.containers(self.project):
            done = subprocess.run(
                ["docker", "logs", "--tail", str(LOG_LINES), each.container_id], capture_output=True, text=True, check=False
            )
            found.append(f"== {each.service}: {each.status}\n{done.stdout}{done.stderr}".rstrip())
        return "\n".join(found)

    def _until_healthy(self, starting: subprocess.Popen[bytes], log: Path, within_s: float) -> None:
        wanted = set(self._run("config", "--services").split())
        begun = time.monotonic()
        healthy: set[str] = set()
        while healthy != wanted:
            now = {each.service for each in engine.containers(self.project) if each.healthy}
            for place, service in enumerate(sorted(now - healthy), start=len(healthy & now) + 1):
                self._say(f"{service} is healthy ({place} of {len(wanted)}, {time.monotonic() - begun:.0f} s)")
            healthy = now
            failed = starting.poll() not in (None, 0)
            if failed or time.monotonic() - begun > within_s:
                why = (
                    "Compose ended with an error"
                    if failed
                    else f"not healthy within {within_s:.0f} s: {', '.join(sorted(wanted - healthy))}"
                )
                raise EngineError(f"{why}\n{log.read_text(errors='replace')[-3000:]}\n{self.logs()}")
            time.sleep(POLL_S)

    def _write_token(self) -> None:
        """The file can be read by the containers' user, and lies in a folder that is closed to everybody else on this machine."""
        self.token_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.token_file.exists():
            self.token_file.write_text(secrets.token_hex(32) + "\n")
        self.token_file.chmod(0o644)

    def _command(self, *words: str) -> list[str]:
        files = [word for file in self._files for word in ("-f", str(file))]
        return [*compose_command(), "-p", self.project, *files, *words]

    def _environment(self) -> dict[str, str]:
        given = {"COMPOSE_PROJECT_NAME": self.project, "DOCKER_GID": str(engine.socket_group()), "TESSERA_TOKEN_FILE": str(self.token_file)}
        return {**os.environ, **given, **self._settings}

    def _run(self, *words: str) -> str:
        done = subprocess.run(self._command(*words), env=self._environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineError(f"compose {words[0]} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done.stdout
