"""The price catalogue: the first pattern that fits, a file of one's own, and what is wrong with a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import ProfileClass
from tessera.node_agent.adapters.prices import load_prices
from tessera.node_agent.config import NodeAgentConfig
from tessera.node_agent.core.prices import ClassPrice, PriceCatalogue
from tessera.node_agent.parts import identity_of

ICE_LAKE = ProfileClass("x86_64-avx512_vnni-ort1.32.0-intel-r-xeon-r-platinum-8375c-cpu-2-90ghz-2c")
UNKNOWN = ProfileClass("x86_64-avx2-ort1.32.0-some-desktop-8c")


def test_the_first_pattern_that_fits_counts() -> None:
    catalogue = PriceCatalogue("", "", (ClassPrice("x86_64-*8375c*", 0.05), ClassPrice("x86_64-*", 0.01)))
    assert catalogue.usd_per_hour(ICE_LAKE, 2) == 0.1
    assert catalogue.usd_per_hour(UNKNOWN, 8) == 0.08
    assert catalogue.usd_per_hour(ProfileClass("riscv64-base"), 8) == 0.0


def test_the_catalogue_that_comes_with_tessera_has_list_prices() -> None:
    catalogue = load_prices(None)
    assert catalogue.as_of
    assert catalogue.source
    assert catalogue.usd_per_hour(ICE_LAKE, 2) == pytest.approx(0.096)
    assert catalogue.usd_per_hour(ProfileClass("x86_64-avx512-ort1-amd-epyc-7r13-processor-2c"), 2) == pytest.approx(0.0864)
    assert catalogue.usd_per_hour(ProfileClass("aarch64-sve-ort1-unknown-2c"), 2) == pytest.approx(0.0816)
    assert catalogue.usd_per_hour(UNKNOWN, 8) > 0
    patterns = [entry.match for entry in catalogue.classes]
    assert len(set(patterns)) == len(patterns)


def test_a_node_has_the_price_of_its_settings_else_of_its_class(tmp_path: Path) -> None:
    def price(**settings: object) -> float:
        config = NodeAgentConfig(repository_url="file:///r", state_folder=tmp_path, run_folder=Path("/r"), **settings)
        identity = identity_of(config, tmp_path, "127.0.0.1:1", "127.0.0.1:2")
        return identity.usd_per_hour / identity.cpu_count

    assert price() == pytest.approx(load_prices(None).classes[-1].usd_per_core_hour, rel=0.5)
    mine = tmp_path / "mine.yaml"
    mine.write_text("classes:\n  - {match: '*', usd_per_core_hour: 0.5}\n")
    assert price(price_catalogue=mine) == 0.5
    assert price(price_catalogue=mine, usd_per_hour=0.0) == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes:\n  - {match: '*', usd_per_core_hour: -1}\n", r"classes\.0\.usd_per_core_hour -1"),
        ("classes:\n  - {match: '*', usd_per_core_hour: .nan}\n", r"usd_per_core_hour nan"),
        ("classes:\n  - {match: '*', usd: 1, usd_per_core_hour: 1}\n", r"classes\.0\.usd 1"),
        ("[]", "should be a valid dictionary"),
        ("classes: [", "while parsing"),
        (None, "No such file"),
    ],
)
def test_a_bad_catalogue_names_what_is_wrong(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInput, match=words) as raised:
        load_prices(path)
    assert str(path) in str(raised.value)
