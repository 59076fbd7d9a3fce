"""The node agent's settings: what is wrong is named with its value and its limit, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tessera.config import read
from tessera.domain.errors import InvalidInput
from tessera.node_agent.config import MAX_RUN_FOLDER_CHARS, NodeAgentConfig

ALPHA, BETA = {"trust_domain": "alpha"}, {"trust_domain": "beta"}


def load(tmp_path: Path, **settings: Any) -> NodeAgentConfig:
    file = tmp_path / "config.yaml"
    needed = {"repository_url": "file:///repository", "state_folder": str(tmp_path / "state"), "run_folder": "/tmp/run"}
    file.write_text(json.dumps({**needed, **settings}))
    return read(NodeAgentConfig, file)


def test_one_store_of_the_default_domain_is_the_default(tmp_path: Path) -> None:
    (store,) = load(tmp_path).stores
    assert (store.trust_domain, store.budget_bytes, store.folder, store.huge_pages) == ("default", 4 << 30, None, "within_size")


def test_a_domains_user_is_its_own_and_always_the_same(tmp_path: Path) -> None:
    config = load(tmp_path, stores=[ALPHA, BETA, {"trust_domain": "gamma", "user": 700}])
    users = {store.trust_domain: config.user_of(store) for store in config.stores}
    assert len(set(users.values())) == 3
    assert users["gamma"] == 700
    assert all(60600 <= users[name] < 60600 + 512 for name in ("alpha", "beta"))
    alone = load(tmp_path, stores=[BETA])
    assert alone.user_of(alone.stores[0]) == users["beta"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stores": []}, ["stores", "at least 1"]),
        ({"stores": [ALPHA, BETA, ALPHA]}, ["stores", "trust domain 'alpha' has two stores: at most one"]),
        ({"stores": [{"trust_domain": "Alpha"}]}, ["stores", "trust_domain", "Alpha", "pattern"]),
        ({"stores": [{**ALPHA, "budget_bytes": 0}]}, ["stores", "budget_bytes", "0", "greater than 0"]),
        ({"stores": [{**ALPHA, "huge_pages": "sometimes"}]}, ["stores", "huge_pages", "sometimes", "within_size"]),
        ({"stores": [{**ALPHA, "budget": 1}]}, ["stores", "budget"]),
        ({"stores": [{**ALPHA, "folder": "/s"}, {**BETA, "folder": "/s"}]}, ["folder /s is of 'alpha' and of 'beta': one store each"]),
        ({"stores": [{**ALPHA, "user": 7}, {**BETA, "user": 7}]}, ["'alpha' and 'beta' would run as user 7"]),
        ({"store_budget_bytes": 1}, ["store_budget_bytes"]),
        ({"reclaim_policy": "mru"}, ["reclaim_policy", "mru", "one of keep-alive, lru, shared-cost"]),
        ({"run_folder": "/" + "r" * MAX_RUN_FOLDER_CHARS}, ["run_folder", f"at most {MAX_RUN_FOLDER_CHARS}"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, **settings)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_a_reclaim_policy_of_another_package_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.plugins._plugins.plugins", lambda group: {"oldest": lambda keep_alive_s: object()})
    assert load(tmp_path, reclaim_policy="oldest").reclaim_policy == "oldest"
