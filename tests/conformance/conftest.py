"""Who runs what: the tests of a file go to one worker, and all that stand on the baked models (`runtime`) do, too: a second one would
import, bake and compile them again."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUNTIME = HERE / "runtime"


@pytest.hookimpl(tryfirst=True)  # workers read the groups in theirs
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            group = RUNTIME if item.path.parent == RUNTIME else item.path
            item.add_marker(pytest.mark.xdist_group(group.relative_to(HERE).as_posix()))
