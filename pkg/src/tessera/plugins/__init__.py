"""Policies, metrics and backends from other packages, by entry point."""

from tessera.plugins._plugins import factory, plugins, with_plugins

__all__ = ["factory", "plugins", "with_plugins"]
