"""Placement: bytes of the union of what a node's store holds, and filters that explain themselves."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.artifact import Blob
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import (
    BuildClass,
    Digest,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    ProfileClass,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.instance import InstanceState
from tessera.domain.records import VariantRecord, VariantState
from tessera.policy.placement import registry
from tessera.policy.placement.bytes_present import BytesPresentPlacement, place
from tessera.policy.placement.filters import RefusalKind, explain, refusal, size_words
from tessera.policy.view import Candidate, InstanceView, NodeCondition, NodeView, StoreView

DOMAIN = TrustDomain("default")
GIB = 1 << 30
digests = st.integers(0, 15).map(lambda number: Digest(f"{number:064x}"))


def candidate(blobs: dict[str, int] | None = None, *, build_class: str | None = "a", flavour: str = "ort", **changes: object) -> Candidate:
    key = VariantKey(DOMAIN, ModelName("m"), VersionNumber(1), VariantName("ort-fp32"))
    total = sum((blobs or {}).values())
    record = VariantRecord(
        key,
        "ort",
        flavour,
        "fp32",
        VariantState.READY,
        8,
        BuildClass(build_class) if build_class else None,
        Digest("f" * 64),
        Digest("e" * 64),
        tensor_bytes=total,
    )
    return Candidate(record, None if blobs is None else tuple(Blob(Digest(digest), size) for digest, size in blobs.items()))


def node(name: str, held: frozenset[Digest] = frozenset(), *, build_class: str = "a", **changes: object) -> NodeView:
    values: dict[str, object] = {"flavours": ("ort",), "store_budget_bytes": 4 * GIB, "store_held_bytes": 0, **changes}
    store = StoreView(values.pop("store_budget_bytes"), values.pop("store_held_bytes"), held)  # type: ignore[arg-type]
    return NodeView(NodeId(name), BuildClass(build_class), ProfileClass("p"), {DOMAIN: store}, **values)  # type: ignore[arg-type]


def test_bytes_of_several_models_add_up() -> None:
    """Two models that share nothing with each other can together hold all that a third one needs."""
    wanted = candidate({"1" * 64: 10, "2" * 64: 20, "3" * 64: 30})
    one_sibling = node("n1", frozenset({Digest("3" * 64)}))
    union = node("n2", frozenset({Digest("1" * 64), Digest("2" * 64), Digest("9" * 64)}))
    both = node("n3", frozenset({Digest("1" * 64), Digest("2" * 64), Digest("3" * 64)}))
    ranked = BytesPresentPlacement().rank(wanted, [one_sibling, union, both])
    assert [(item.node_id, item.bytes_present, item.bytes_to_fetch) for item in ranked] == [("n3", 60, 0), ("n1", 30, 30), ("n2", 30, 30)]


def test_ties_go_to_the_less_loaded_then_the_lower_id() -> None:
    ranked = BytesPresentPlacement().rank(candidate({}), [node("n3", starting=1), node("n2"), node("n1", starting=2), node("n4")])
    assert [item.node_id for item in ranked] == ["n2", "n4", "n3", "n1"]


@given(
    st.dictionaries(digests, st.integers(0, 1 << 32), max_size=8), st.lists(st.frozensets(digests), min_size=1, max_size=5), st.randoms()
)
def test_each_digest_counts_once_and_order_of_nodes_never_matters(blobs, stores, random) -> None:  # type: ignore[no-untyped-def]
    wanted = candidate(blobs)
    nodes = [node(f"n{index}", held) for index, held in enumerate(stores)]
    ranked = BytesPresentPlacement().rank(wanted, nodes)
    for placement in ranked:
        held = stores[int(placement.node_id[1:])]
        assert placement.bytes_present == sum(size for digest, size in blobs.items() if digest in held)
        assert placement.bytes_present + placement.bytes_to_fetch == sum(blobs.values())
    assert all(first.bytes_to_fetch <= second.bytes_to_fetch for first, second in itertools.pairwise(ranked))
    shuffled = list(nodes)
    random.shuffle(shuffled)
    assert BytesPresentPlacement().rank(wanted, shuffled) == ranked


@given(st.dictionaries(digests, st.integers(0, 1 << 32), max_size=8), st.frozensets(digests), digests)
def test_a_store_that_holds_more_never_ranks_worse(blobs, held, more) -> None:  # type: ignore[no-untyped-def]
    assert place(candidate(blobs), node("n", held | {more})).bytes_to_fetch <= place(candidate(blobs), node("n", held)).bytes_to_fetch


def test_without_a_list_the_record_is_the_estimate() -> None:
    wanted = candidate(None)
    wanted = Candidate(
        VariantRecord(**{name: getattr(wanted.record, name) for name in wanted.record.__slots__} | {"tensor_bytes": 500}), None
    )
    unknown = place(wanted, node("n"))
    assert (unknown.bytes_to_fetch, unknown.exact) == (500, False)
    there = place(wanted, node("n", frozenset({Digest("f" * 64), Digest("e" * 64)})))
    assert (there.bytes_present, there.bytes_to_fetch) == (500, 0)
    graph_only = place(wanted, node("n", frozenset({Digest("e" * 64)})))
    assert graph_only.bytes_to_fetch == 500


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"stores": {TrustDomain("other"): StoreView(4 * GIB)}}, RefusalKind.DOMAIN, "has no store of trust domain default"),
        ({"condition": NodeCondition.SUSPECT}, RefusalKind.SUSPECT, "is suspect: its lease is lost"),
        ({"condition": NodeCondition.SILENT}, RefusalKind.SILENT, "does not report"),
        ({"build_class": BuildClass("b")}, RefusalKind.BUILD_CLASS, "is of build class b; the variant was built for a"),
        ({"flavours": ("aten",)}, RefusalKind.FLAVOUR, "has no ort runtimes; it has aten"),
        (
            {"stores": {DOMAIN: StoreView(4 * GIB, 3 * GIB)}},
            RefusalKind.STORE,
            "is short of 1.0 GiB in its store: 2.0 GiB to fetch, 1.0 GiB free or reclaimable",
        ),
    ],
)
def test_every_refusal_says_why(changes: dict[str, object], kind: RefusalKind, words: str) -> None:
    import dataclasses

    wanted, refused = candidate({"1" * 64: 2 * GIB}), dataclasses.replace(node("n"), **changes)  # type: ignore[arg-type]
    found = refusal(wanted, refused, place(wanted, refused))
    assert found is not None
    assert found.kind is kind
    assert words in found.reason
    assert refusal(wanted, node("n"), place(wanted, node("n"))) is None


def test_a_build_for_every_class_is_not_refused_for_its_class() -> None:
    anywhere = candidate({}, build_class=None)
    assert refusal(anywhere, node("n", build_class="b"), place(anywhere, node("n", build_class="b"))) is None


def test_what_is_pinned_elsewhere_is_no_room_but_what_can_be_reclaimed_is() -> None:
    wanted = candidate({"1" * 64: 100})
    full_of_reclaimable = node("n", store_budget_bytes=100, store_held_bytes=0)
    assert refusal(wanted, full_of_reclaimable, place(wanted, full_of_reclaimable)) is None
    one_byte_short = node("n", store_budget_bytes=100, store_held_bytes=1)
    found = refusal(wanted, one_byte_short, place(wanted, one_byte_short))
    assert found is not None
    assert found.short_bytes == 1


def test_refusals_are_counted_in_one_sentence() -> None:
    wanted = candidate({"1" * 64: int(2.1 * GIB)})
    nodes = [node("n1", build_class="b"), node("n2", build_class="c"), node("n3", store_budget_bytes=0)]
    refusals = [found for item in nodes if (found := refusal(wanted, item, place(wanted, item)))]
    assert explain(refusals, 3) == "0 of 3 nodes: 2 are of another build class, 1 is short of 2.1 GiB in its store"
    assert explain(refusals[:1], 3) == "2 of 3 nodes: 1 is of another build class"
    assert explain([], 0) == "0 of 0 nodes: no node is registered"
    assert explain([], 2) == "2 of 2 nodes"
    full = node("n4", store_budget_bytes=2 * GIB, store_held_bytes=GIB)
    figures = "1 is short of 1.1 GiB in its store (2.1 GiB needed, of a budget of 2.0 GiB 1.0 GiB are pinned)"
    assert explain([refusal(wanted, full, place(wanted, full))], 1) == f"0 of 1 nodes: {figures}"  # type: ignore[list-item]
    two = [node("n3", store_budget_bytes=0), node("n4", store_budget_bytes=GIB)]
    assert "2 are short of 1.1 GiB to 2.1 GiB in their stores" in explain([refusal(wanted, n, place(wanted, n)) for n in two], 2)  # type: ignore[misc]


def test_a_full_store_names_the_variants_of_the_same_domain_that_live_there() -> None:
    def living(model: str, domain: TrustDomain = DOMAIN) -> InstanceView:
        key = VariantKey(domain, ModelName(model), VersionNumber(1), VariantName("ort-fp32"))
        return InstanceView(InstanceId(f"i-{model}"), key, Generation(1), InstanceState.READY, 0.0)

    wanted = candidate({"1" * 64: GIB})
    others = [living(model) for model in "dbacfe"] + [living("a"), living("secret", TrustDomain("other"))]
    full = node("n", store_budget_bytes=GIB, store_held_bytes=GIB // 2, instances=tuple(others))
    words = explain([refusal(wanted, full, place(wanted, full))], 1)  # type: ignore[list-item]
    assert "512.0 MiB are pinned by a@1/ort-fp32, b@1/ort-fp32, c@1/ort-fp32, d@1/ort-fp32, 2 more)" in words


def test_sizes_in_words() -> None:
    assert [size_words(size) for size in (0, 1023, 1024, 5 << 20, 3 << 30, 5000 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "5000.0 GiB",
    ]


def test_an_unknown_policy_is_refused_by_name() -> None:
    assert registry.make("bytes-present").name == "bytes-present"
    with pytest.raises(InvalidInput, match="placement policy 'nearest': one of bytes-present"):
        registry.make("nearest")
