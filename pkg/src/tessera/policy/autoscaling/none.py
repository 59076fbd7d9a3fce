"""The number of instances is left alone: as many as requests started, until they are idle."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.policy.autoscaling.base import NOTHING, ModelLoad, ScalePlan


@dataclass(frozen=True, slots=True)
class NoAutoscaling:
    @property
    def name(self) -> str:
        return "none"

    @property
    def slow(self) -> bool:
        return False

    def plan(self, load: ModelLoad) -> ScalePlan:
        return NOTHING
