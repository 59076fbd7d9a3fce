"""Who runs what: the tests of a file go to one worker, and all that stand on the baked models (`runtime`) do, too: a second one would
import, bake and compile them again."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

BAKED = "tests/conformance/runtime/"


class Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return BAKED if nodeid.startswith(BAKED) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None
