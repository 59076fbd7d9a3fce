"""What the benchmark of variants concludes from what a platform says."""

from __future__ import annotations

import pytest

from benchmarks.blocks import Block
from benchmarks.offers import MIB, Offer, error, fastest_ms, goal, most, offer_of, static, without_gain
from benchmarks.variants import against
from tessera.domain.accuracy import Agreement
from tessera.testing.builders import a_latency_row, a_load_cost, a_profile, a_variant
from tessera.wire import encode_profile, encode_variant_info


def an_offer(name: str, one_ms: float, items_per_s: float, mib: float = 10.0, *, precision: str = "fp32", state: str = "offered") -> Offer:
    return Offer(name, precision, state, "", 0.0, "", {1: one_ms, 8: 4 * one_ms}, 8, items_per_s, mib, mib)


QUICK, FULL = an_offer("quick", 2.0, 600.0), an_offer("full", 3.0, 900.0)


def test_an_offer_has_the_figures_of_all_cores_busy() -> None:
    rows = (
        a_latency_row(1, 2, 4.0, peak_private_bytes=MIB),
        a_latency_row(8, 2, 15.0, mean_ms=16.0, peak_private_bytes=5 * MIB),
        a_latency_row(16, 2, 40.0),
        a_latency_row(1, 1, 1.0),
        a_latency_row(1, 1, 1.0, concurrency=2),
    )
    record = a_variant(tensor_bytes=7 * MIB, agreement=Agreement(0.2, 0.995, 16), precision="int8")
    loads = (a_load_cost(peak_private_bytes=2 * MIB), a_load_cost(peak_private_bytes=3 * MIB))
    profiles = [encode_profile(a_profile(record.key, rows=rows, load=loads))]
    found = offer_of(encode_variant_info(record), profiles, threads=2, concurrency=1)
    assert (found.one_ms, found.batch, found.items_per_s) == (4.0, 8, 500.0)
    assert (found.weights_mib, found.private_mib, found.memory_mib) == (7.0, 4.0, 11.0)
    assert (found.state, found.loss, found.compared) == ("offered", pytest.approx(0.005), "cosine 0.9950, error 0.2, 16 samples")
    assert offer_of(encode_variant_info(record), profiles, threads=1, concurrency=2).one_ms == 1.0
    assert not offer_of(encode_variant_info(record), [], threads=2, concurrency=1).p50_ms


def test_what_is_withheld_or_not_measured_is_no_offer() -> None:
    withheld = encode_variant_info(a_variant(withheld="loses too much"))
    assert (offer_of(withheld, [], 1, 1).state, offer_of(withheld, [], 1, 1).why) == ("withheld", "loses too much")
    better = an_offer("better", 0.5, 9000.0, state="withheld")
    unmeasured = Offer("unmeasured", "fp32", "offered", "", 0.0, "")
    offers = [better, unmeasured, QUICK, FULL]
    assert (most(offers), static(offers), fastest_ms(offers, 8), fastest_ms(offers, 4)) == (FULL, QUICK, 8.0, 8.0)


@pytest.mark.parametrize(
    ("one_ms", "mib", "gains"),
    [(1.0, 20.0, True), (9.0, 5.0, True), (2.5, 10.0, False), (2.5, 8.0, True), (2.0, 10.0, False)],
    ids=["faster", "smaller", "faster than some only", "smaller than all", "no better than the best"],
)
def test_int8_gains_where_it_is_faster_or_smaller_than_everything_else(one_ms: float, mib: float, gains: bool) -> None:
    int8 = an_offer("ort-int8", one_ms, 1.0, mib, precision="int8")
    assert without_gain([QUICK, FULL, int8]) == ([] if gains else ["ort-int8"])
    assert without_gain([QUICK, FULL, an_offer("ort-int8", 9.0, 1.0, 99.0, precision="int8", state="withheld")]) == []


def test_more_is_asked_of_a_cpu_with_vnni() -> None:
    assert [goal(family, isa) for family in ("cnn", "transformer", "minilm") for isa in (["avx2"], ["avx2", "avx512_vnni"])] == [
        1.4, 4.0, 1.1, 2.0, 1.1, 2.0,
    ]  # fmt: skip
    assert goal("cnn", ["avx_vnni"]) == 4.0


def test_rounds_are_compared_in_pairs() -> None:
    theirs = [Block(8, rate, 1.0) for rate in (100.0, 50.0, 10.0)]
    ours = [Block(4, rate, 1.0) for rate in (200.0, 200.0, 30.0)]
    assert against(theirs, ours) == 3.0


def test_an_error_is_a_share_of_what_happened() -> None:
    assert [error(predicted_ms, 10.0) for predicted_ms in (10.0, 8.0, 15.0)] == pytest.approx([0.0, 0.2, 0.5])
