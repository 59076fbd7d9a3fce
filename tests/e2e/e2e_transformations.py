"""Models that become each other for as long as it takes, under load from two clients: every answer must be that of a fresh load.

Half of the models are ready at a time, and one more than there are clients, so that whoever is asked for next is made of one that nobody
asked for a moment; requests for that one are in flight all the same. Starts by other paths take what a profile says: long, as where
structure has to be built. What fresh loads answer is asked first, one model at a time, when there is nothing that it could be made of.

    make soak TRANSFORMATIONS=2000 SEED=1
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from e2e_asking import Failed, ask_sdk, ask_triton, open_sdk, open_triton
from e2e_models import save
from e2e_platform import Platform, until
from e2e_profiles import write_start_cost
from e2e_weights import Weights, growth, shown, weigh

from tessera.sdk import Client

IDLE_S, REPORT_S, KEEP_ALIVE_S = 0.02, 0.1, 50.0
"""A keep-alive of less than the minute that gaps are counted by: no donor is kept for the sake of its own model."""
ENV = {
    "TESSERA_TRANSFORM_IDLE_S": str(IDLE_S), "TESSERA_REPORT_S": str(REPORT_S), "TESSERA_INSTANCE_KEEP_ALIVE_S": str(KEEP_ALIVE_S),
    "TESSERA_AUTOSCALING_POLICY": "none", "TESSERA_MOVE_INTERFERED": "false", "TESSERA_EXPLANATIONS": "256",
    "TESSERA_LEARN_START_TIMES": "false",
}  # fmt: skip
OTHER_PATHS_MS = 200.0
"""What their profiles say, and what starts take corrects nothing of it: whoever can be made of something is."""
SHAPES = {"narrow": (16, 0), "deeper": (24, 5), "wide": (24, 0), "deep": (16, 3)}
"""Width and blocks: from one to the next operations are written anew, added, taken away, and read from elsewhere."""
FEATURES, CLASSES = 32, 10
INPUTS = 4
VARIANT = "aten-fp32"
AGREES = 1e-5
MOST_IN_A_ROW = 24
PAUSE_S = 0.02
"""Between two models that a client asks for."""
LOOK_S = 0.2
STUCK_S = 120.0


class Stack(torch.nn.Module):
    """Blocks with a way past each; siblings have their weights, but for the first layer, each for itself."""

    def __init__(self, width: int, blocks: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(width)
            self.first = torch.nn.Linear(FEATURES, width)
            torch.manual_seed(seed)
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(blocks))
            self.head = torch.nn.Linear(width, CLASSES)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x)


@dataclass
class Tally:
    """What happened so far; shared by threads."""

    paths: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    transformed: set[str] = field(default_factory=set)
    """Instances that came of another one."""
    stopped: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        paths = ", ".join(f"{count} {path}" for path, count in sorted(self.paths.items()))
        errors = ", ".join(f"{count} {kind}" for kind, count in sorted(self.errors.items()))
        return (
            f"{len(self.transformed)} transformations, {self.paths.total()} answers ({paths}), {len(self.wrong)} wrong; "
            f"errors: {errors or 'none'}; {self.stopped} stopped"
        )


class Transformations:
    """A platform, its models, and what fresh loads of them answer."""

    def __init__(self, state: Path, seed: int, shapes: int = len(SHAPES), siblings: int = 2) -> None:
        """Brings it up; whoever gets here calls `end`. `siblings` of each of the first `shapes`."""
        self.seed = seed
        self._shapes = [(f"{name}{sibling}", *SHAPES[name], sibling) for name in list(SHAPES)[:shapes] for sibling in range(siblings)]
        self.tally = Tally()
        self.platform = Platform(state, store="256M", env=ENV)
        self._asked = [np.random.default_rng(at).standard_normal((2, FEATURES), dtype=np.float32) for at in range(INPUTS)]
        self._stop = threading.Event()
        self._weights: list[Weights] = []
        try:
            self.platform.up()
            with self.platform.client() as client:
                self._fresh = self._prepared(client, state.parent)
        except BaseException:
            self.end()
            raise

    @property
    def models(self) -> list[str]:
        return list(self._fresh)

    def end(self) -> None:
        self.platform.end()

    def _prepared(self, client: Client, folder: Path) -> dict[str, list[np.ndarray]]:
        found = {}
        for name, *shape in self._shapes:
            path = save(Stack(*shape), (FEATURES,), folder / f"{name}.pt2")
            client.register(name, path, wait=True)
            found[name] = self._loaded(client, name)
        for name in found:
            write_start_cost(self.platform.layout.etcd_address, name, VARIANT, OTHER_PATHS_MS)
        return found

    def _loaded(self, client: Client, name: str) -> list[np.ndarray]:
        """What a fresh load answers: nothing else is there while it starts."""
        answers = [ask_sdk(client, _reference(name), given) for given in self._asked]
        assert answers[0][1] in ("bind", "fork"), answers[0][1]
        for node, instance in self._ready(client):
            client.stop_instance(node, instance.instance_id)
        until(lambda: not self._ready(client), f"{name} is stopped")
        return [output for output, _ in answers]

    # asking

    def _run(self, client: Any, ask: Any, index: int) -> None:
        draw = random.Random(f"{self.seed}-{len(self._weights)}-{index}")
        names = self.models
        while not self._stop.is_set():
            name = draw.choice(names)
            for _ in range(draw.randint(1, MOST_IN_A_ROW)):
                self._once(client, ask, name, draw.randrange(INPUTS))
            self._stop.wait(PAUSE_S)

    def _once(self, client: Any, ask: Any, name: str, at: int) -> None:
        tally = self.tally
        try:
            output, path = ask(client, _reference(name), self._asked[at])
        except Failed as failed:
            with tally.lock:
                tally.errors[f"{failed.kind}: {failed}"] += 1
            return
        wanted = self._fresh[name][at]
        off = float(np.abs(output - wanted).max()) if output.shape == wanted.shape else np.inf
        with tally.lock:
            tally.paths[path] += 1
            if not off <= AGREES * max(1.0, float(np.abs(wanted).max())):
                tally.wrong.append(f"{name}: off by {off}")

    # counting

    def _ready(self, client: Client) -> list[tuple[str, Any]]:
        return [(node, found) for node, found in client.instances() if found.state == "ready" and found.variant.variant == VARIANT]

    def _look(self, client: Client) -> None:
        """Counts, and stops what nobody has asked for the longest where too many are ready."""
        found = client.instances()
        came = {instance.instance_id for _, instance in found if instance.start_path == "transform" and instance.state == "ready"}
        self.tally.transformed |= came
        ready = sorted(self._ready(client), key=lambda entry: -entry[1].idle_s)
        for node, instance in ready[: max(0, len(ready) - max(3, len(self._fresh) // 2))]:
            client.stop_instance(node, instance.instance_id)
            self.tally.stopped += 1

    # rounds

    def run(self, transformations: int, rounds: int) -> list[str]:
        """Returns what is not as it should be, in words."""
        begun_s = time.monotonic()
        with self.platform.client() as client:
            for number in range(rounds):
                self._round(client, transformations * (number + 1) // rounds)
                self._weights.append(weigh(self.platform, ("zygote", "relay", "runtime")))
                took_s = time.monotonic() - begun_s
                print(f"round {number + 1} of {rounds}, {took_s:.0f} s: {self.tally}; MiB {shown(self._weights[-1])}", flush=True)
            until(lambda: not self._stop_all(client), "every instance is stopped")
        findings = [f"wrong answer: {words}" for words in self.tally.wrong]
        findings += [f"error: {words}" for words in self.tally.errors]
        findings += growth(self._weights)
        checked = self.platform.tessera("node", "fsck", "--deep")
        if checked.returncode != 0:
            findings.append(f"fsck: {checked.stdout} {checked.stderr}")
        return findings

    def _round(self, client: Client, until_count: int) -> None:
        self._stop.clear()
        tally, moved_s = self.tally, time.monotonic()
        with open_sdk(self.platform) as sdk, open_triton(self.platform) as triton:
            clients = [(sdk, ask_sdk), (triton, ask_triton)]
            threads = [threading.Thread(target=self._run, args=(*each, at), daemon=True) for at, each in enumerate(clients)]
            for thread in threads:
                thread.start()
            try:
                while len(tally.transformed) < until_count:
                    before = len(tally.transformed)
                    time.sleep(LOOK_S)
                    self._look(client)
                    moved_s = time.monotonic() if len(tally.transformed) > before else moved_s
                    assert time.monotonic() < moved_s + STUCK_S, f"nothing was transformed for {STUCK_S:.0f} s: {tally}"
            finally:
                self._stop.set()
                for thread in threads:
                    thread.join(90)
        assert not any(thread.is_alive() for thread in threads), "a request got neither an answer nor an error before its deadline"

    def _stop_all(self, client: Client) -> int:
        ready = self._ready(client)
        for node, instance in ready:
            client.stop_instance(node, instance.instance_id)
        return len(ready)


def _reference(name: str) -> str:
    return f"{name}@1/{VARIANT}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            findings = _soaked(Path(folder) / "state", given.transformations, given.seed)
    except KeyboardInterrupt:
        findings = ["interrupted"]
    print("\n".join(findings) or "sound: every answer a fresh load's, no error, no leak, no growth")
    return 1 if findings else 0


def _soaked(state: Path, transformations: int, seed: int) -> list[str]:
    soak = Transformations(state, seed)
    try:
        print(f"seed {seed}: {len(soak.models)} models of {len(SHAPES)} graphs, asked by two clients", flush=True)
        return soak.run(transformations, rounds=max(2, transformations // 200))
    finally:
        soak.end()


if __name__ == "__main__":
    sys.exit(main())
