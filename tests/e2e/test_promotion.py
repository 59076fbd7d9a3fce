"""Versions behind an alias, on a platform that is asked all the while: a worse one is refused, forced, answers, and is left again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import e2e_models
import numpy as np
from e2e_platform import Platform, until

NAME, ALIAS = "guarded", "guarded-live"
PROMOTION = {"alias", "unchanged", "comparisons"}
COMPARISON = {"measure", "on", "current", "candidate", "words", "refused"}
STEP = {"model", "version", "since_unix_s", "reason"}


class Asking(threading.Thread):
    """Asks the alias again and again until it is told to end; remembers which version answered, and what went wrong."""

    def __init__(self, platform: Platform, image: np.ndarray, wanted: dict[int, np.ndarray]) -> None:
        super().__init__()
        self.platform, self.image, self.wanted = platform, image, wanted
        self.answered: list[int] = []
        self.errors: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        with self.platform.client() as client:
            while not self.ended.is_set():
                try:
                    answer = client.infer(ALIAS, {"image": self.image})
                except Exception as error:
                    self.errors.append(repr(error))
                    continue
                (found,) = answer.outputs.values()
                version = int(answer.model_version)
                if not e2e_models.agrees(found, self.wanted[version]):
                    self.errors.append(f"an answer of version {version} is another's")
                self.answered.append(version)

    def until_answered_by(self, version: int) -> None:
        """By it and, from then on, by no other."""
        until(lambda: self.answered[-3:] == [version] * 3, f"version {version} answers")


@contextmanager
def asking(platform: Platform, image: np.ndarray, wanted: dict[int, np.ndarray]) -> Iterator[Asking]:
    thread = Asking(platform, image, wanted)
    thread.start()
    try:
        yield thread
    finally:
        thread.ended.set()
        thread.join(60)


def test_a_worse_version_is_refused_forced_and_left_again_and_no_request_is_lost(platform: Platform, sources: Path, tmp_path: Path) -> None:
    good, worse = e2e_models.Net(1), e2e_models.Net(2)
    images = e2e_models.images(64)
    np.savez(tmp_path / "eval.npz", image=images, labels=good.eager(images).argmax(axis=1))
    for version, source in ((1, "net.pt2"), (2, "sibling.pt2")):
        words = ("model", "register", NAME, str(sources / source), "--eval", str(tmp_path / "eval.npz"), "--metric", "top1", "--wait")
        assert platform.json(*words)["version"] == version
    try:
        done = platform.tessera("model", "promote", f"{NAME}@1", ALIAS)
        assert (done.returncode, done.stderr) == (0, f"{ALIAS} now means {NAME}@1: promoted\n")
        image = e2e_models.images(2, seed=9)
        with asking(platform, image, {1: good.eager(image), 2: worse.eager(image)}) as asked:
            asked.until_answered_by(1)

            refused = platform.tessera("model", "promote", f"{NAME}@2", ALIAS)
            assert refused.returncode == 1
            for part in (f"{NAME}@2 does not replace {NAME}@1", "accuracy (top1): 0.", "after 1.0000 loses", "(allow_loss)", "by force"):
                assert part in refused.stderr
            assert platform.json("model", "show", NAME)["aliases"][0]["version"] == 1

            forced = platform.json("model", "promote", f"{NAME}@2", ALIAS, "--force")
            assert set(forced) == PROMOTION
            assert all(set(each) == COMPARISON for each in forced["comparisons"])
            assert [each["current"] for each in forced["comparisons"] if each["refused"]] == [1.0]
            asked.until_answered_by(2)
            (alias,) = platform.json("model", "show", ALIAS)["aliases"]
            assert alias == forced["alias"]
            assert all(set(step) == STEP for step in alias["before"])
            assert [(step["version"], step["reason"]) for step in alias["before"]] == [(1, "promoted")]
            assert f"alias {ALIAS} (@2): forced: accuracy (top1)" in platform.tessera("model", "show", NAME).stdout

            back = platform.tessera("model", "rollback", ALIAS)
            assert (back.returncode, back.stderr) == (0, f"{ALIAS} now means {NAME}@1: back from {NAME}@2\n")
            asked.until_answered_by(1)
            again = platform.tessera("model", "rollback", ALIAS)
            assert again.returncode == 1
            assert "it named nothing before" in again.stderr
        assert asked.errors == []
        moves = [asked.answered[0]] + [b for a, b in zip(asked.answered, asked.answered[1:], strict=False) if a != b]
        assert moves == [1, 2, 1], "each move is seen once, and none is seen to go back and forth"
    finally:
        platform.tessera("model", "alias", ALIAS, "--delete")
        platform.tessera("model", "delete", NAME, "--yes")


def test_what_is_no_version_or_no_limit_is_refused_by_name(platform: Platform) -> None:
    for words, code, part in (
        (("net@1/ort-fp32", "no-such-alias"), 2, "names a variant"),
        (("net@9", "no-such-alias"), 1, "no version 9; it has 1"),
        (("net@1", "net"), 1, "'net' is a model"),
        (("net@1", "no-such-alias", "--allow-slower", "-1"), 2, "allow_slower -1.0: must be a number from 0"),
    ):
        done = platform.tessera("model", "promote", *words)
        assert (done.returncode, part in done.stderr) == (code, True), done.stderr
    assert platform.tessera("model", "rollback", "no-such-alias").returncode == 1
