"""Policies, metrics and backends from other packages, by entry point."""

from tessera.plugins._plugins import plugins, with_plugins

__all__ = ["plugins", "with_plugins"]
