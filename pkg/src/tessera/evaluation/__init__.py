"""How well a model answers: the user's evaluation set, and metrics that score answers from 0 to 1, larger is better.

numpy alone, so that whoever builds a variant can score it where it is built.
"""

from tessera.evaluation.base import LABELS, Arrays, Metric
from tessera.evaluation.registry import metric, metric_names
from tessera.evaluation.sets import MAX_SET_BYTES, EvaluationSet, read_inputs, read_set

__all__ = ["LABELS", "MAX_SET_BYTES", "Arrays", "EvaluationSet", "Metric", "metric", "metric_names", "read_inputs", "read_set"]
