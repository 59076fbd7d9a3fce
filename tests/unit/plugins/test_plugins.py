"""Policies of other packages: real package metadata in a folder on the path, as an installer leaves it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.domain.errors import FailedPrecondition, InvalidInput
from tessera.plugins import plugins, with_plugins
from tessera.policy.variant import registry

GROUP = "tessera.policies.tried"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    def put(package: str, code: str, group: str = GROUP, **points: str) -> None:
        folder = tmp_path / package
        information = folder / f"{package}-1.0.dist-info"
        information.mkdir(parents=True)
        (folder / f"{package}_code.py").write_text(code)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {package}_code:{target}" for name, target in points.items()]
        (information / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        monkeypatch.syspath_prepend(str(folder))

    return put


def test_what_a_package_offers_is_called_with_the_arguments(install: Install) -> None:
    install("pairs", "def pair(a, b=0):\n    return (a, b)\n", pair="pair")
    found = plugins(GROUP)
    assert list(found) == ["pair"]
    assert found["pair"](1, b=2) == (1, 2)


def test_a_package_that_nobody_asks_for_is_not_imported(install: Install) -> None:
    install("broken", "raise ImportError('needs a library')\n", broken="policy")
    found = plugins(GROUP)
    with pytest.raises(FailedPrecondition, match=r"'broken' of broken \(broken_code:policy\): needs a library"):
        found["broken"]()


def test_an_entry_that_names_nothing_callable_says_so(install: Install) -> None:
    install("numbers", "LIMIT = 3\n", limit="LIMIT", missing="NOTHING")
    with pytest.raises(FailedPrecondition, match="is no factory"):
        plugins(GROUP)["limit"]()
    with pytest.raises(FailedPrecondition, match="has no attribute 'NOTHING'"):
        plugins(GROUP)["missing"]()


def test_one_name_from_two_packages_is_refused(install: Install) -> None:
    install("first", "def policy():\n    return 1\n", policy="policy")
    install("second", "def policy():\n    return 2\n", policy="policy")
    with pytest.raises(FailedPrecondition, match=r"'policy' is offered twice, by (first and second|second and first)"):
        plugins(GROUP)


def test_a_package_cannot_replace_an_own_policy(install: Install) -> None:
    install("usurper", "def policy():\n    return 1\n", plain="policy", other="policy")
    with pytest.raises(FailedPrecondition, match="'plain' is offered by a package"):
        with_plugins(GROUP, {"plain": lambda: 0})
    assert set(with_plugins(GROUP, {"own": lambda: 0})) == {"own", "plain", "other"}


def test_a_variant_policy_of_a_package_is_made_by_its_name(install: Install) -> None:
    install("mine", "class Mine:\n    name = 'mine'\n", registry.GROUP, mine="Mine")
    assert registry.make("mine").name == "mine"
    with pytest.raises(InvalidInput, match="mine, plain"):
        registry.make("yours")


@pytest.mark.parametrize(
    "family", ["autoscaling", "instance", "load", "nodes", "placement", "pool", "reclaim", "scaling", "start", "variant"]
)
def test_every_family_takes_policies_of_packages_and_lists_what_there_is(install: Install, family: str) -> None:
    module = importlib.import_module(f"tessera.policy.{family}.registry")
    install(f"for_{family}", "def made(*arguments):\n    return ('mine', *arguments)\n", module.GROUP, mine="made")
    further = [object() for _ in list(inspect.signature(module.make).parameters)[1:]]
    assert module.make("mine", *further) == ("mine", *further)
    with pytest.raises(InvalidInput, match=r"one of .*mine") as refused:
        module.make("yours", *further)
    assert all(name in refused.value.message for name in module.POLICIES)
