"""Calls to a container engine over its API."""

from tessera.engine._calls import EngineCalls, remove_container

__all__ = ["EngineCalls", "remove_container"]
