"""Objectives on the wire: what was not said stays unsaid, and what is none is refused by name."""

from __future__ import annotations

import pytest

from tessera.api.common.v1 import common_pb2
from tessera.domain.errors import InvalidInput
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.wire import decode_objectives, encode_objectives


@pytest.mark.parametrize("asked", [NO_OBJECTIVES, Objectives(20.0, 0.9, 0.0, "digits", True), Objectives(min_accuracy=0.0)])
def test_there_and_back(asked: Objectives) -> None:
    message = common_pb2.Objectives.FromString(encode_objectives(asked).SerializeToString())
    assert decode_objectives(message) == asked


def test_what_is_none_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="parameter latency_ms"):
        decode_objectives(common_pb2.Objectives(latency_ms=-2))
