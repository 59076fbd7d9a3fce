"""When two registrations are the same, and which are refused at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest, ModelName, TrustDomain
from tessera.registry.core.manifest import SourceFile
from tessera.registry.core.source import BuilderCall, Demands, Registration, checked_registration, parse_argument, source_digest
from tessera.tensorstore.artifact import digest_of

FILES = (SourceFile("config.json", 3, Digest("a" * 64)), SourceFile("model.safetensors", 9, Digest("b" * 64)))
BASE = Registration(TrustDomain("default"), ModelName("m"), "t", "d", 0.5, FILES)
EVALUATION = SourceFile("evaluation set", 9, Digest("d" * 64))
BUILT = replace(BASE, files=(), builder=BuilderCall("p:f", {"a": 1, "b": [1, 2]}, 7))


def digest(registration: Registration) -> Digest:
    return source_digest(registration, digest_of)


@pytest.mark.parametrize(
    "same",
    [
        replace(BASE, files=FILES[::-1]),
        replace(BASE, accuracy=None),
        replace(BASE, trust_domain=TrustDomain("other")),
        replace(BASE, attempt=2),
        replace(BASE, lossy=True),
    ],
)
def test_what_changes_nothing_in_the_version(same: Registration) -> None:
    assert digest(same) == digest(BASE)


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, name=ModelName("n")),
        replace(BASE, task="u"),
        replace(BASE, dataset="e"),
        replace(BASE, files=FILES[:1]),
        replace(BASE, files=(replace(FILES[0], path="x"), FILES[1])),
        replace(BASE, files=(replace(FILES[0], digest=Digest("c" * 64)), FILES[1])),
        BUILT,
        replace(BASE, demands=Demands(EVALUATION, "top1")),
        replace(BASE, demands=Demands(EVALUATION, "f1")),
        replace(BASE, demands=Demands(calibration=EVALUATION)),
        replace(BASE, demands=Demands(allow_loss=0.02)),
        replace(BASE, demands=Demands(recipes=())),
    ],
)
def test_what_makes_another_version(other: Registration) -> None:
    assert digest(other) != digest(BASE)


def test_builder_counts_with_reference_arguments_and_seed() -> None:
    variants = [
        BuilderCall("p:g", {"a": 1, "b": [1, 2]}, 7),
        BuilderCall("p:f", {"a": 2, "b": [1, 2]}, 7),
        BuilderCall("p:f", {"a": "1", "b": [1, 2]}, 7),
        BuilderCall("p:f", {"a": 1, "b": [1, 2]}, 8),
    ]
    assert len({digest(BUILT), *(digest(replace(BUILT, builder=b)) for b in variants)}) == 5
    assert digest(replace(BUILT, builder=BuilderCall("p:f", {"b": [1, 2], "a": 1}, 7))) == digest(BUILT)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(BASE, name=ModelName("A b")), "model name 'A b'"),
        (replace(BASE, name=ModelName("identity")), "built-in"),
        (replace(BASE, task="task:x"), "task 'task:x'"),
        (replace(BASE, dataset="-x"), "dataset '-x'"),
        (replace(BASE, accuracy=1.5), "accuracy 1.5: must be from 0 to 1"),
        (replace(BASE, accuracy=float("nan")), "accuracy nan"),
        (replace(BUILT, builder=BuilderCall("os:system", {}, 0)), "builder 'os:system': must be one of p:f"),
    ],
)
def test_bad_registration_names_field_value_and_rule(bad: Registration, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        checked_registration(bad, ("p:f",))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ('"resnet18"', "resnet18"), ("resnet18", "resnet18"), ("true", True), ("[1, 2]", [1, 2]), ("NaN", "NaN")]
)
def test_argument_is_json_or_else_text(text: str, value: object) -> None:
    assert parse_argument("name", text) == value


@given(st.text())
def test_any_text_is_an_argument_and_two_readings_agree(text: str) -> None:
    assert parse_argument("x", text) == parse_argument("x", text)


def test_argument_name_is_an_identifier() -> None:
    with pytest.raises(InvalidInput, match="builder argument"):
        parse_argument("a b", "1")


@pytest.mark.parametrize(
    ("demands", "words"),
    [
        (Demands(EVALUATION, ""), "metric ''"),
        (Demands(EVALUATION, "elo"), "metric 'elo': one of"),
        (Demands(metric="top1"), "metric 'top1': scores an evaluation set; there is none"),
        (Demands(replace(EVALUATION, size_bytes=2 << 30), "top1"), "evaluation set '2147483648 bytes': at most"),
        (Demands(allow_loss=float("nan")), "allow_loss nan: must be from 0 to 1"),
        (Demands(allow_loss=-0.1), "allow_loss -0.1: must be from 0 to 1"),
        (Demands(recipes=("int4",)), "variants 'int4': must be among"),
    ],
)
def test_demands_that_make_no_sense_are_refused_by_name(demands: Demands, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        checked_registration(replace(BASE, demands=demands), ())
    assert words in str(refused.value)


def test_base_recipes_and_repeats_are_left_out_of_a_choice() -> None:
    chosen = Demands(recipes=("ort-int8", "aten-fp32", "ort-int8"))
    assert checked_registration(replace(BASE, demands=chosen), ()).demands.recipes == ("ort-int8",)
