"""Where policies look for `tessera.plugins`."""

from tessera.plugins import plugins, with_plugins

__all__ = ["plugins", "with_plugins"]
