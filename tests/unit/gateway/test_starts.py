"""Who shares a start, and which variant may answer who waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from loops_world import Parts, virtually

from tessera.api.open_inference.inference_pb2 import ModelInferRequest
from tessera.domain.accuracy import Agreement
from tessera.domain.errors import ResourceExhausted, Unavailable
from tessera.domain.ids import BuildClass
from tessera.frames.openinference import encode_parameters
from tessera.testing.builders import a_model, a_variant, a_version, an_alias, an_instance

ORT, ATEN, OTHER = "digits@1/ort-fp32", "digits@1/aten-fp32", "other@1/aten-fp32"


def ask(parts: Parts, name: str, **parameters: Any) -> asyncio.Future[bytes]:
    body = ModelInferRequest(model_name=name).SerializeToString() + encode_parameters(parameters)
    return asyncio.ensure_future(parts.inference.infer(body, 30.0))


def put(parts: Parts, **records: Any) -> None:
    for key, record in records.items():
        parts.catalogue.put(key, record)


def answered(parts: Parts) -> dict[str, str]:
    """By which variant, of each name that was asked for."""
    return {made.model: str(made.slot.variant) for made in parts.decisions._last if made.slot is not None}


def test_nobody_is_answered_by_what_only_another_one_permits() -> None:
    """The choice is the same for all; the scheduler takes the last candidate."""

    async def test(parts: Parts) -> None:
        put(parts, ort=a_variant(variant="ort-fp32"), x=a_variant(agreement=Agreement(0.3, 0.8, 9)), m=a_model(lossy=True))
        put(parts, other=a_model("other"), version=a_version("other"), variant=a_variant("other"), alias=an_alias("strict"))
        parts.scheduler.takes = -1
        exact = {"min_accuracy": 0.9, "strict": True}
        await asyncio.gather(*(ask(parts, name) for name in ("task:digits", "digits", "digits@1/ort-fp32")), ask(parts, "strict", **exact))
        assert answered(parts) == {"task:digits": OTHER, "digits": ATEN, "digits@1/ort-fp32": ORT, "strict": ORT}
        assert [len(candidates) for candidates in parts.scheduler.asked] == [3, 2, 1], "who permits the same shares a start"

    virtually(test)


def test_what_appears_meanwhile_answers_only_who_permits_it() -> None:
    async def test(parts: Parts) -> None:
        elsewhere = a_variant(variant="ort-fp32", build_class=BuildClass("elsewhere"))
        put(parts, elsewhere=elsewhere)
        parts.scheduler.errors = [Unavailable("nobody leads")] * 3
        waiting = [ask(parts, "digits"), ask(parts, "digits@1/aten-fp32")]
        await asyncio.sleep(0.5)
        put(parts, instance=an_instance(variant=elsewhere.key))
        await asyncio.gather(*waiting)
        assert answered(parts)["digits@1/aten-fp32"] == ATEN

    virtually(test)


def test_the_queue_of_a_variant_is_bounded_whoever_waits_in_it() -> None:
    async def test(parts: Parts) -> None:
        put(parts, ort=a_variant(variant="ort-fp32"), other=a_model("other"), version=a_version("other"), variant=a_variant("other"))
        waiting = [ask(parts, "digits"), ask(parts, "digits@1/ort-fp32")]
        await asyncio.sleep(0.1)
        for name in ("digits", "task:digits"):
            with pytest.raises(ResourceExhausted, match="2 requests wait for digits@1/ort-fp32 to start"):
                await ask(parts, name)
        await asyncio.gather(*waiting)
        assert len(parts.scheduler.calls) == 2

    virtually(test, limit=2)
