"""The user's sets, checked against the model's signature, and the model's own score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tessera.domain.accuracy import Agreement
from tessera.domain.signature import Signature
from tessera.evaluation import EvaluationSet, read_inputs, read_set
from tessera.registry.importer.task import Task
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.evaluating import evaluate

if TYPE_CHECKING:  # what loads torch
    from tessera.registry.importer.agreement import Run
    from tessera.registry.importer.export import Exported


def checked(task: Task, signature: Signature) -> EvaluationSet | None:
    """The evaluation set, where there is one; the calibration set is only looked at.

    Raises:
        InvalidInput: a set does not fit the signature, or has too few samples; says why.
    """
    if task.calibration:
        read_inputs(Path(task.calibration).read_bytes(), signature)
    return read_set(Path(task.evaluation).read_bytes(), signature) if task.evaluation else None


def judged(task: Task, made: Exported, opened: Callable[[], Run], say: Callable[[str, float], None]) -> Agreement | None:
    """The score of the flat program, which `opened` opens, on the evaluation set; None without one.

    Raises:
        InvalidInput: as `checked`, or the metric cannot judge the answers.
    """
    found = checked(task, made.signature)
    if found is None:
        return None
    import torch

    say(f"scoring by {task.metric}", 0.45)
    run = opened()
    names = [spec.name for spec in made.signature.outputs]

    def answer(inputs: dict[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
        given = [torch.from_numpy(np.array(inputs[spec.name].array)) for spec in made.signature.inputs]
        return dict(zip(names, run(given), strict=True))

    return evaluate(found, task.metric, made.signature, task.max_batch, None, answer)
