"""Durable storage of blobs by digest, behind fsspec. Written by the registry, read by node agents; runtimes never see it."""

from tessera.repository.interface import Piece
from tessera.repository.store import Repository

__all__ = ["Piece", "Repository"]
