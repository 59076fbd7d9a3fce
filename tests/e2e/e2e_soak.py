"""Random requests, stops, evictions and kills on a store that holds half of what is asked for. Every answer is checked.

A soak ends sound: no wrong answer, nothing but clear errors, stores that pass the checker, no process that grew. It runs in rounds;
between two of them nothing is asked, every instance is stopped, and everything is measured.

    make soak MINUTES=30 SEED=1            the long form
    make soak MINUTES=10 KILLS=1 SEED=2    kill -9 of one process every few seconds, tritonclient asks
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from e2e_asking import Failed, ask_sdk, ask_triton, open_sdk, open_triton
from e2e_models import Member, agrees, save
from e2e_platform import Platform, until
from e2e_weights import MIB, Weights, children, growth, shown, weigh

from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.repository.artifacts import decode
from tessera.sdk import Client, TesseraError

VARIANTS = ("ort-fp32", "aten-fp32")
CLEAR = frozenset({"unavailable", "resource_exhausted", "deadline_exceeded", "cancelled", "failed_precondition", "wrong_generation"})
"""Kinds of error that a request may end with while things are killed and stores are too small for everybody."""
TRANSFORM_IDLE_S = "0.2"
"""So that models become each other all the time; a minute is what nobody here is left alone for."""


@dataclass(frozen=True)
class Mix:
    """How often a disturbance comes (seconds between two, on average) and what it is: weights by name."""

    every_s: float
    weights: dict[str, float]


CALM = Mix(0.4, {"stop": 10, "kill runtime": 1, "kill zygote": 0.3, "kill agent": 0.3, "kill scheduler": 0.2, "kill gateway": 0.2})
KILLS = Mix(
    5.0,
    {"kill runtime": 4, "kill zygote": 2, "kill agent": 2, "kill scheduler": 1, "kill gateway": 1, "kill registry": 1, "kill profiler": 1,
     "kill etcd": 1, "kill relay": 1, "kill supervisor": 0.5},
)  # fmt: skip


@dataclass
class Tally:
    """What happened so far; shared by threads."""

    answers: int = 0
    paths: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Models:
    """Families of siblings, their sources and what eager PyTorch says."""

    def __init__(self, folder: Path, families: int, members: int) -> None:
        self.names = [f"family{family}-member{member}" for family in range(families) for member in range(members)]
        self.sources: dict[str, Path] = {}
        self.asked = [np.random.default_rng(seed).standard_normal((2, Member.WIDTH), dtype=np.float32) for seed in range(4)]
        self.wanted: dict[str, list[np.ndarray]] = {}
        for family in range(families):
            for member in range(members):
                name = f"family{family}-member{member}"
                module = Member(family, member)
                self.sources[name] = save(module, (Member.WIDTH,), folder / f"{name}.pt2")
                self.wanted[name] = [module.eager(given) for given in self.asked]


def working_set_bytes(platform: Platform) -> int:
    """Bytes of all blobs that all servable variants need, each once."""
    repository = Repository(str(platform.state / "repository"))
    blobs: dict[Digest, int] = {}
    with platform.client() as client:
        for model in client.models():
            for version in client.model(model.name).versions:
                for variant in version.variants:
                    if variant.key.variant in VARIANTS:
                        found = decode(repository.read(Digest(variant.artifact_digest)))
                        blobs |= {blob.digest: blob.size_bytes for blob in found.blobs()}
    return sum(blobs.values())


class Soak:
    """One platform under random load. `triton` asks with tritonclient instead of the SDK."""

    def __init__(self, platform: Platform, models: Models, mix: Mix, seed: int, threads: int = 3, triton: bool = False) -> None:
        self.platform = platform
        self.models = models
        self.mix = mix
        self.seed = seed
        self.threads = threads
        self.tally = Tally()
        self._ask: Callable[[Any, str, np.ndarray], tuple[np.ndarray, str]] = ask_triton if triton else ask_sdk
        self._open = open_triton if triton else open_sdk
        self._stop = threading.Event()

    # asking

    def _run(self, index: int) -> None:
        draw = random.Random(f"{self.seed}-{index}")
        with self._open(self.platform) as client:
            while not self._stop.is_set():
                # A few models are asked for often, the others seldom: as users do, and so that something is always cold.
                name = self.models.names[min(int(draw.expovariate(0.35)), len(self.models.names) - 1)]
                self._once(client, name, draw.choice(VARIANTS), draw.randrange(len(self.models.asked)))

    def _once(self, client: Any, name: str, variant: str, at: int) -> None:
        tally = self.tally
        try:
            output, path = self._ask(client, f"{name}@1/{variant}", self.models.asked[at])
        except Failed as failed:
            with tally.lock:
                tally.errors[failed.kind] += 1
                if failed.kind not in CLEAR:
                    tally.unclear.append(f"{name}/{variant}: {failed}")
            self._stop.wait(0.05)
            return
        with tally.lock:
            tally.answers += 1
            tally.paths[path] += 1
            if not agrees(output, self.models.wanted[name][at]):
                tally.wrong.append(f"{name}/{variant}: off by {np.abs(output - self.models.wanted[name][at]).max()}")

    # disturbing

    def _disturb(self, draw: random.Random, seconds: float) -> None:
        end = time.monotonic() + seconds
        names, weights = zip(*self.mix.weights.items(), strict=True)
        with self.platform.client() as client:
            while time.monotonic() < end:
                self._stop.wait(min(draw.expovariate(1 / self.mix.every_s), max(0.0, end - time.monotonic())))
                what = draw.choices(names, weights)[0]
                if self._carry_out(client, what, draw):
                    self.tally.disturbances[what] += 1

    def _carry_out(self, client: Client, what: str, draw: random.Random) -> bool:
        if what == "stop":
            return self._stop_one(client, draw)
        pids = self._pids(what.removeprefix("kill "))
        if not pids:
            return False
        try:
            os.kill(draw.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            return False
        if what in ("kill supervisor", "kill gateway"):
            self._back(what)
        return True

    def _back(self, what: str) -> None:
        """Nobody but a user starts the supervisor again; and without a gateway nothing is tested."""
        if what == "kill supervisor":
            # What it has left ends first, as the refusal of `up` asks for.
            ended = self.platform.down()
            assert ended.returncode == 0, ended.stderr
            self.platform.up()
        self.platform.until_ready()

    def _stop_one(self, client: Client, draw: random.Random) -> bool:
        try:
            ready = [(node, found) for node, found in client.instances() if found.state == "ready" and found.variant.model != "identity"]
            if ready:
                node, found = draw.choice(ready)
                client.stop_instance(node, found.instance_id)
            return bool(ready)
        except TesseraError:
            return False  # somebody is being killed

    def _pids(self, what: str) -> list[int]:
        """Processes of a kind, as the machine shows them."""
        if what == "supervisor":
            return [found.pid] if (found := self.platform.supervisor) else []
        if what in ("runtime", "zygote", "relay"):
            return [pid for pid, name in children(self.platform).items() if name == what]
        names = {"agent": ["node-agent-0"], "scheduler": ["scheduler", "scheduler-standby"]}.get(what, [what])
        return [process["pid"] for process in self.platform.recorded()["processes"] if process["name"] in names]

    # rounds

    def run(self, seconds: float, rounds: int) -> list[str]:
        """Returns what is not as it should be, in words."""
        weights: list[Weights] = []
        findings: list[str] = []
        for number in range(rounds):
            self._round(random.Random(f"{self.seed}-{number}"), seconds / rounds)
            findings += self._settle()
            weights.append(weigh(self.platform))
            print(f"round {number + 1} of {rounds}: {self.summary()}; MiB {shown(weights[-1])}", flush=True)
        findings += [f"wrong answer: {words}" for words in self.tally.wrong]
        findings += [f"unclear error: {words}" for words in self.tally.unclear]
        findings += growth(weights)
        if not self.tally.answers:
            findings.append("nothing was answered")
        return findings

    def _round(self, draw: random.Random, seconds: float) -> None:
        self._stop.clear()
        threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(self.threads)]
        for thread in threads:
            thread.start()
        try:
            self._disturb(draw, seconds)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(90)
        assert not any(thread.is_alive() for thread in threads), "a request got neither an answer nor an error before its deadline"

    def _settle(self) -> list[str]:
        """Everything is ready again, each model answers right, nothing is held any more, the checker finds nothing."""
        self.platform.until_ready()
        findings = []
        with self.platform.client() as client:
            for name in self.models.names:
                for variant in VARIANTS:
                    until(lambda: self._answers(client, name, variant), f"{name}/{variant} answers after the round")  # noqa: B023
            until(lambda: not self._stop_all(client), "every instance is stopped")
            time.sleep(1.0)
        checked = self.platform.tessera("node", "fsck", "--deep")
        if checked.returncode != 0:
            findings.append(f"fsck: {checked.stdout} {checked.stderr}")
        return findings

    def _answers(self, client: Client, name: str, variant: str) -> bool:
        try:
            (output,) = client.infer(f"{name}@1/{variant}", {"x": self.models.asked[0]}, timeout_s=30).outputs.values()
        except TesseraError as error:
            if error.kind not in CLEAR:
                raise
            return False
        assert agrees(output, self.models.wanted[name][0]), f"{name}/{variant} is wrong after a round"
        return True

    def _stop_all(self, client: Client) -> int:
        left = [(node, found) for node, found in client.instances() if found.state not in ("gone", "failed")]
        for node, found in left:
            try:
                client.stop_instance(node, found.instance_id)
            except TesseraError:
                pass
        return len(left)

    def summary(self) -> str:
        tally = self.tally
        disturbed = ", ".join(f"{count} {what}" for what, count in sorted(tally.disturbances.items()))
        errors = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.errors.items()))
        paths = ", ".join(f"{count} {path}" for path, count in sorted(tally.paths.items()))
        return f"{tally.answers} answers ({paths}), {len(tally.wrong)} wrong; errors: {errors or 'none'}; disturbed: {disturbed or 'not'}"


def prepared(state: Path, families: int, members: int) -> tuple[Platform, Models]:
    """A platform that is up, whose store is half of what its models need."""
    folder = state.parent / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    models = Models(folder, families, members)
    platform = Platform(state, store="1G", env={"TESSERA_TRANSFORM_IDLE_S": TRANSFORM_IDLE_S})
    platform.up()
    try:
        with platform.client() as client:
            for name in models.names:
                client.register(name, models.sources[name], wait=True)
        budget = working_set_bytes(platform) // 2
        assert platform.down().returncode == 0
        platform.store = str(budget)
        platform.up()
    except BaseException:
        platform.end()
        raise
    return platform, models


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--families", type=int, default=3)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--kills", action="store_true", help="kill -9 of random processes, tritonclient asks")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        platform, models = prepared(Path(folder) / "state", given.families, given.members)
        try:
            soak = Soak(platform, models, KILLS if given.kills else CALM, given.seed, triton=given.kills)
            print(f"seed {given.seed}: {len(models.names)} models, store {int(platform.store) / MIB:.0f} MiB, half of them", flush=True)
            findings = soak.run(given.minutes * 60, rounds=max(2, round(given.minutes / 3)))
            print(soak.summary())
            print("\n".join(findings) or "sound: no wrong answer, no unclear error, no leak, no growth")
            return 1 if findings else 0
        finally:
            platform.end()


if __name__ == "__main__":
    sys.exit(main())
