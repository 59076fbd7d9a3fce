"""Requests in the background, one after another in each of some threads; every answer is checked, every error kept."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from e2e_models import Net, agrees, images
from e2e_platform import until

from tessera.sdk import Client, InferResult, Objectives, TesseraError

BATCH = 2
ROUNDS = 16
PAUSE_S = 0.005
"""The machine has other things to do while something restarts."""


class Connects(Protocol):
    """A platform, however it was brought up."""

    def connect(self) -> Client: ...


class Load:
    """`with Load(platform, "net", Net(1)) as load`: sends from then on; leaving stops and joins.

    Args:
        timeout_s: the deadline of each request.
        batch: items of each.
        pause_s: between two requests of a thread.
    """

    def __init__(
        self,
        platform: Connects,
        model: str,
        eager: Net,
        threads: int = 2,
        timeout_s: float = 30.0,
        batch: int = BATCH,
        pause_s: float = PAUSE_S,
        objectives: Objectives | None = None,
    ) -> None:
        self.answered = 0
        self.answers: list[tuple[float, InferResult]] = []
        """Milliseconds that each took, and what came."""
        self.wrong: list[str] = []
        self.errors: list[TesseraError] = []
        self.threads = threads
        self._model = model
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._objectives = objectives
        self._client = platform.connect()
        self._input = self._client.metadata(model).inputs[0].name
        self._asked = [images(batch, seed) for seed in range(ROUNDS)]
        self._wanted = [eager.eager(given) for given in self._asked]
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(threads)]

    def _run(self, index: int) -> None:
        at = index
        while not self._stop.wait(self._pause_s):
            at = (at + 1) % ROUNDS
            begun_s = time.perf_counter()
            try:
                answer = self._client.infer(
                    self._model, {self._input: self._asked[at]}, timeout_s=self._timeout_s, objectives=self._objectives
                )
            except TesseraError as error:
                with self._lock:
                    self.errors.append(error)
                continue
            (output,) = answer.outputs.values()
            with self._lock:
                self.answered += 1
                self.answers.append(((time.perf_counter() - begun_s) * 1e3, answer))
                if not agrees(output, self._wanted[at]):
                    self.wrong.append(f"{answer.request_id}: {np.abs(output - self._wanted[at]).max()}")

    def progress(self, more: int = 40, within_s: float = 60.0) -> None:
        """Waits until `more` requests have been answered from now on."""
        wanted = self.answered + more
        until(lambda: self.answered >= wanted, f"{more} more answers ({len(self.errors)} errors: {self.errors[-1:]})", within_s)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.progress(4)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._timeout_s + 10)
        hanging = [thread.name for thread in self._threads if thread.is_alive()]
        self._client.close()
        if kind is None:
            assert not hanging, "a request got neither an answer nor an error before its deadline"
            assert not self.wrong, f"wrong answers: {self.wrong}"
