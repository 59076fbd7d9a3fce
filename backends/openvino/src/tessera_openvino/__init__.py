"""OpenVINO as a backend of Tessera: what the registry knows of it. Serving is in `backend`, building in `baking`; neither is imported here.

Installed where nodes are, and where the registry is; there nothing of it but this module is imported.
"""

from __future__ import annotations

from tessera.domain.recipe import Recipe


def recipe() -> Recipe:
    """Made of the export, for who asks: its weights are laid out anew in every runtime that opens it."""
    return Recipe("openvino-fp32", "fp32", exact=True, gains=lambda version, build_class: True, backend="openvino", flavour="ort")
