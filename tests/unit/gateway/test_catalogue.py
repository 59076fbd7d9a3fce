"""Names, candidates and what becomes of them as records change."""

from dataclasses import replace

import pytest
from catalogue_world import DOMAIN, alias, instance, node, picked, put, usable

from tessera.coord import keys
from tessera.domain.errors import InvalidInput, ModelNotFound, NotFound, VariantNotFound, VersionNotFound
from tessera.domain.ids import ModelName, VersionNumber
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.gateway.core import catalogue as module
from tessera.gateway.core.catalogue import Catalogue
from tessera.testing.builders import a_model, a_profile, a_variant, a_variant_key, a_version


def test_names_versions_and_aliases(catalogue: Catalogue) -> None:
    put(catalogue, replace(a_version(), version=VersionNumber(2)))
    put(catalogue, a_variant(key=a_variant_key(version=2)))
    put(catalogue, replace(a_model(), latest=VersionNumber(2)))
    put(catalogue, alias("prod", 1))
    put(catalogue, alias("edge"))

    def resolved(name: str, version: str = "") -> int:
        found = catalogue.route(name, version).name.version
        assert found is not None
        return found.version

    assert (resolved("digits"), resolved("digits", "1"), resolved("digits@1"), resolved("digits@1", "1")) == (2, 1, 1, 1)
    assert (resolved("prod"), resolved("edge"), resolved("edge@1"), resolved("prod", "1")) == (1, 2, 1, 1)
    assert catalogue.route("digits@1/aten-fp32", "").name.named == "aten-fp32"
    with pytest.raises(VersionNotFound, match="alias of digits@1"):
        resolved("prod", "2")
    with pytest.raises(VersionNotFound, match="has no version 9; it has 1, 2"):
        resolved("digits", "9")
    with pytest.raises(InvalidInput, match="says version 1"):
        resolved("digits@1", "2")
    with pytest.raises(VariantNotFound, match="there are aten-fp32"):
        resolved("digits@1/ort-int8")
    put(catalogue, alias("prod", 2))
    assert resolved("prod") == 2
    put(catalogue, alias("lost", model="gone"))
    with pytest.raises(ModelNotFound, match="alias stands for 'gone'"):
        resolved("lost")


def test_a_removed_alias_and_model_are_gone_at_once(catalogue: Catalogue) -> None:
    key = put(catalogue, alias("prod"))
    assert catalogue.route("prod", "")
    catalogue.remove(key)
    with pytest.raises(ModelNotFound):
        catalogue.route("prod", "")
    catalogue.remove(keys.model(DOMAIN, ModelName("digits")))
    with pytest.raises(ModelNotFound):
        catalogue.route("digits", "")
    catalogue.remove("never/there")


def test_routes_are_remembered_until_something_of_theirs_changes(catalogue: Catalogue) -> None:
    route = catalogue.route("digits", "")
    assert catalogue.route("digits", "") is route
    put(catalogue, instance())
    put(catalogue, a_variant("stranger"))
    assert catalogue.route("digits", "") is route, "an instance and another model's variant change no order"
    put(catalogue, replace(a_profile(), variant=a_variant_key(), profile_class=node().profile_class))
    changed = catalogue.route("digits", "")
    assert changed is not route
    put(catalogue, node("node-1"))
    assert catalogue.route("digits", "") is changed, "one more node of a class that is there changes nothing"
    put(catalogue, replace(node("node-2"), runtime_threads=7))
    assert catalogue.route("digits", "") is not changed


def test_memory_of_names_is_bounded(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 3)
    for version in ("1", "01", "001", "0001", "00001"):
        catalogue.route("digits", version)
    assert len(catalogue._names) <= 3


def test_a_profile_changes_the_figures(catalogue: Catalogue) -> None:
    put(catalogue, instance())
    assert usable(catalogue)[0].latency is None
    key = put(catalogue, replace(a_profile(), variant=a_variant_key(), profile_class=node().profile_class))
    (candidate,) = catalogue.route("digits", "").ranking.meeting
    assert (candidate.latency_ms, candidate.load_ms, candidate.start_ms) == (2.0, 4.0, 6.0)
    assert (candidate.expected_ms(2), candidate.started_ms(2)) == (3.0, 7.0)
    latency = usable(catalogue)[0].latency
    assert latency is not None
    assert (latency.one_ms, latency.at(2)) == (2.0, 3.0)
    assert usable(catalogue)[0].joins
    put(catalogue, a_variant(joins=False))
    assert not usable(catalogue)[0].joins
    catalogue.remove(put(catalogue, instance()))
    put(catalogue, instance("i2", 2))
    assert not any(slot.joins for slot in usable(catalogue)), "it came after the record"
    catalogue.remove(key)
    assert catalogue.route("digits", "").ranking.meeting[0].latency_ms is None
    assert usable(catalogue)[0].latency is None


def names_of(catalogue: Catalogue, name: str, objectives: Objectives = NO_OBJECTIVES) -> list[str]:
    return [f"{one.key.model}@{one.key.version}" for one in catalogue.route(name, "", objectives).ranking.meeting]


def test_a_task_stands_for_the_newest_versions_of_its_models(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="no model is registered for task 'letters'; there are digits"):
        catalogue.route("task:letters", "")
    with pytest.raises(InvalidInput, match="stands for several models"):
        catalogue.route("task:digits", "1")
    assert names_of(catalogue, "task:digits") == ["digits@1"]
    model = put(catalogue, a_model("large"))
    put(catalogue, a_version("large"))
    variant = put(catalogue, a_variant("large", build_class=None))
    assert sorted(names_of(catalogue, "task:digits")) == ["digits@1", "large@1"]
    # A new version: its variants come before the model record says that it is the newest.
    put(catalogue, replace(a_version("large"), version=VersionNumber(2)))
    put(catalogue, replace(a_variant("large"), key=a_variant_key("large", 2), build_class=None))
    assert sorted(names_of(catalogue, "task:digits")) == ["digits@1", "large@1"]
    put(catalogue, a_model("large", latest=VersionNumber(2)))
    assert sorted(names_of(catalogue, "task:digits")) == ["digits@1", "large@2"]
    put(catalogue, a_model("large", latest=VersionNumber(2), task="letters"))
    assert (names_of(catalogue, "task:digits"), names_of(catalogue, "task:letters")) == (["digits@1"], ["large@2"])
    catalogue.remove(variant)
    catalogue.remove(model)
    with pytest.raises(NotFound):
        catalogue.route("task:letters", "")
    assert names_of(catalogue, "task:digits") == ["digits@1"]


def test_the_accuracy_of_a_model_counts_at_once(catalogue: Catalogue) -> None:
    wanted = Objectives(min_accuracy=0.9)
    put(catalogue, a_model(accuracy=0.8))
    assert names_of(catalogue, "digits", wanted) == []
    put(catalogue, a_model(accuracy=0.95))
    assert names_of(catalogue, "digits", wanted) == ["digits@1"]


def test_a_version_that_comes_back_is_not_answered_from_memory(catalogue: Catalogue) -> None:
    put(catalogue, instance())
    assert picked(catalogue) == "i1"
    catalogue.remove(keys.variant(a_variant_key()))
    assert picked(catalogue) is None
    put(catalogue, a_variant(build_class=None))
    assert picked(catalogue) == "i1"
