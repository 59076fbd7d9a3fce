"""A backend of another package (`examples/backend-reference`): installed beside a node agent, its runtimes serve artifacts for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.domain.errors import Unsupported
from tessera.node_agent.core.artifacts import FLAVOURS
from tessera.runtime import backends

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "backend-reference"


def test_it_is_short() -> None:
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")) < 60


async def test_without_the_package_nobody_serves_its_artifacts(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "reference")
    await agent.start()
    known = ", ".join(sorted({*FLAVOURS, *backends.others()}))
    with pytest.raises(Unsupported, match=f"no runtime serves backend 'reference'; known are {known}$"):
        await agent.start_instance("a", model.artifact)


async def test_with_it_they_are_served_beside_others(agent: Any, kit: Any, install_example: Callable[[str], Path]) -> None:
    install_example("backend-reference")
    ours, sibling = kit.make_linear(agent.repository, "reference"), kit.make_linear(agent.repository, "reference", bias_seed=1)
    baked = kit.make_linear(agent.repository, "ort")
    await agent.start()
    x = np.random.default_rng(3).standard_normal((4, kit.width), dtype=np.float32)
    for name, model in (("a", ours), ("b", sibling), ("c", baked)):
        instance = await agent.start_instance(name, model.artifact)
        client = await kit.direct(instance)
        np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), atol=1e-4)
        client.close()
        # one mapping of the weight for all three, whichever backend reads it
        assert Path(f"/proc/{instance.pid}/maps").read_text().count(ours.tensor) == 1
    assert len({item.runtime_id for item in (await agent.status()).instances}) == 1
    for name in "abc":
        await agent.stop_instance(name)

    async def nothing_pinned() -> bool:
        return bool((await agent.status()).stores[0].pinned_bytes == 0)

    await agent.until(nothing_pinned)


async def test_a_package_that_does_not_load_harms_its_own_instances_alone(
    agent: Any, kit: Any, install_example: Callable[[str], Path]
) -> None:
    site = install_example("backend-reference")
    (site / "tessera_backend_reference" / "__init__.py").write_text("raise ImportError('a library is missing')\n")
    model, baked = kit.make_linear(agent.repository, "reference"), kit.make_linear(agent.repository, "ort")
    await agent.start()
    with pytest.raises(Exception, match=r"'ort\.reference' of tessera-backend-reference .* a library is missing"):
        await agent.start_instance("a", model.artifact)
    assert (await agent.start_instance("b", baked.artifact)).state == "ready"
