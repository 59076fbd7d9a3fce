"""What a recipe is given, and what it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tessera.domain.artifact import Artifact
from tessera.domain.ids import BuildClass
from tessera.runtime.agreement import Case
from tessera.runtime.recipes.calibration import Calibration

Progress = Callable[[str, float], None]
"""Step in words and the share that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Work:
    """A source to build from (the export, or the flat program): its artifact, its graph and tensors, and generated inputs with the answers
    that it gives to them.

    `calibrate` says what ranges of activations are taken from; it is called by recipes that need them. `scratch` is a folder of this
    build alone.
    """

    artifact: Artifact
    graph: bytes
    tensors: Mapping[str, npt.NDArray[Any]]
    cases: list[Case]
    calibrate: Callable[[], Calibration]
    build_class: BuildClass
    scratch: Path
    progress: Progress


@dataclass(frozen=True, slots=True)
class Built:
    """A graph without weights and its tensors as (array, datatype) by name. `exact`: it has to agree with the source within 1e-4.
    `backend` opens it.

    `options` go into the artifact; `notes` say what a user should know about this build. `joins` False: rows of a batch are known to change
    one another's answers. Of what is not exact the baker tries it out as well.
    """

    graph: bytes
    tensors: Mapping[str, tuple[npt.NDArray[Any], str]]
    precision: str
    exact: bool
    options: tuple[str, ...] = ()
    notes: str = ""
    backend: str = "ort"
    dialect: str = "onnx"
    joins: bool = True
