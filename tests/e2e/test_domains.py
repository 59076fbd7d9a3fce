"""Two trust domains on one platform: the same model in both, each answers by its own gateway, and neither sees the other.

Their runtimes run as one user here: whose a process is does not show from outside, and `tests/integration/node_agent/test_domains.py`
looks at what users protect.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import e2e_models
import numpy as np
import pytest
from e2e_platform import Platform

from tessera.domain.errors import NotFound
from tessera.sdk import Client

ALPHA, BETA = "alpha", "beta"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    found = Platform(tmp_path_factory.mktemp("domains") / "state", "128M", {"TESSERA_RUNTIME_USER": "own"}, domains=(ALPHA, BETA))
    try:
        found.up()
        yield found
    finally:
        found.end()


def client_of(platform: Platform, domain: str) -> Client:
    return Client(state=platform.state, trust_domain=domain)


def test_the_same_model_answers_in_both_and_is_stored_in_each(shared: Platform, sources: Path) -> None:
    images = e2e_models.images(3)
    wanted = e2e_models.Net(1).eager(images)
    for domain in (ALPHA, BETA):
        with client_of(shared, domain) as client:
            client.register("net", sources / "net.pt2", wait=True)
            for variant in ("ort-fp32", "aten-fp32"):
                answer = client.infer(f"net@1/{variant}", {"image": images}, timeout_s=90)
                np.testing.assert_allclose(next(iter(answer.outputs.values())), wanted, atol=1e-4)
    stores = shared.layout.stores()
    names = [{path.name for path in (store / "blobs").iterdir()} for store in stores]
    assert names[0] & names[1], "the tensors that both need lie in each"
    assert len({store.stat().st_dev for store in stores}) == 2


def test_neither_sees_the_other(shared: Platform, sources: Path) -> None:
    images = e2e_models.images(1)
    with client_of(shared, ALPHA) as alpha, client_of(shared, BETA) as beta:
        alpha.register("secret", sources / "sibling.pt2", wait=True)
        answer = alpha.infer("secret", {"image": images}, timeout_s=90)
        with pytest.raises(NotFound):
            beta.infer("secret", {"image": images}, timeout_s=30)
        with pytest.raises(NotFound):
            beta.explain(answer.request_id)
        assert {model.name for model in beta.models()} == {"identity", "net"}
        for client, domain in ((alpha, ALPHA), (beta, BETA)):
            (node,) = client.nodes()
            assert [store.trust_domain for store in node.stores] == [domain]
            assert {instance.variant.trust_domain for instance in node.instances} == {domain}
            assert {runtime.trust_domain for runtime in node.runtimes} == {domain}
        runtimes = [{runtime.runtime_id for runtime in client.nodes()[0].runtimes} for client in (alpha, beta)]
        assert runtimes[0].isdisjoint(runtimes[1])
        assert "secret" not in str(beta.nodes())
