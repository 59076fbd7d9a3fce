"""A tensor store in a local folder, best a tmpfs of its own (tessera.tensorstore.mount)."""

from tessera.tensorstore.local.store import LocalTensorStore

__all__ = ["LocalTensorStore"]
