"""A variant policy from another package: installed and named in the gateway's settings, it decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN
from tessera.domain.objectives import Objectives
from tessera.gateway.core.catalogue import Catalogue
from tessera.policy.variant import registry
from tessera.testing.builders import a_latency_row, a_model, a_node, a_profile, a_variant, a_version

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "policy-leanest"


def test_it_is_short() -> None:
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")) < 60


def test_installing_the_package_is_all(install_example: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput, match="variant policy 'leanest'"):
        registry.make("leanest")
    install_example("policy-leanest")
    catalogue = Catalogue(DEFAULT_TRUST_DOMAIN, registry.make("leanest"))
    fat = a_variant("digits", "ort-fp32", tensor_bytes=9000)
    lean = a_variant("digits", "aten-fp32", tensor_bytes=9000, tensor_bytes_shared=8000)
    profiles = [a_profile(one.key, rows=(a_latency_row(p50_ms=ms),)) for one, ms in ((fat, 2.0), (lean, 9.0))]
    for record in (a_model(), a_version(), a_node(), fat, lean, *profiles):
        catalogue.put(repr(record), record)

    def chosen(**asked: float) -> str:
        choice = catalogue.choose(catalogue.route("digits", "", Objectives(**asked)))  # type: ignore[arg-type]
        return "" if choice is None else choice.candidate.key.variant

    assert (chosen(), chosen(latency_ms=5.0), chosen(latency_ms=1.0)) == ("aten-fp32", "ort-fp32", "ort-fp32")
