"""`ort-fp32-prepacked`: the same bytes as `ort-fp32`, opened with prepacking on. Matrix products run faster (28 % on BERT); opening takes
longer, and what ONNX Runtime lays out anew cannot be shared between processes or instances."""

from __future__ import annotations

from dataclasses import replace

from tessera.domain.artifact import PREPACKED
from tessera.runtime.recipes import fp32
from tessera.runtime.recipes.base import Built, Work

NOTES = "opens with its weights laid out anew in private memory, which is not shared"


def make(work: Work) -> Built:
    return replace(fp32.make(work), options=(PREPACKED,), notes=NOTES)
