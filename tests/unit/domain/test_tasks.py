"""What models of one task must have in common, and what requests to the task can rely on."""

from __future__ import annotations

import pytest

from tessera.domain.errors import InvalidInput
from tessera.domain.signature import Signature, TensorSpec
from tessera.domain.tasks import check_task_signature, common_signature
from tessera.testing.builders import a_signature

IMAGE = TensorSpec("image", "FP32", (-1, 1, 8, 8))
LOGITS = TensorSpec("logits", "FP32", (-1, 10))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inputs": (TensorSpec("picture", "FP32", (-1, 1, 8, 8)),)}, "its inputs are 'picture', and they are 'image' in model 'small'"),
        ({"inputs": ()}, "its inputs are none, and they are 'image'"),
        ({"outputs": (LOGITS, TensorSpec("hidden", "FP32", (-1, 3)))}, "its outputs are 'hidden', 'logits', and they are 'logits'"),
        ({"inputs": (TensorSpec("image", "UINT8", (-1, 1, 8, 8)),)}, "its input 'image' is UINT8 of rank 4, and it is FP32 of rank 4"),
        ({"outputs": (TensorSpec("logits", "FP32", (-1, 10, 1)),)}, "its output 'logits' is FP32 of rank 3, and it is FP32 of rank 2"),
        ({"outputs": (TensorSpec("logits", "FP32", (), any_rank=True),)}, "is FP32 of any rank, and it is FP32 of rank 2"),
        ({"batched": False}, "it is not batched, unlike what is registered"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match="task 'digits'") as caught:
        check_task_signature("digits", a_signature(**fields), {"small": a_signature()})
    assert words in str(caught.value)


def test_shapes_and_the_order_of_tensors_may_differ() -> None:
    two = Signature((IMAGE, TensorSpec("mask", "BOOL", (-1,))), (LOGITS,))
    turned = Signature((TensorSpec("mask", "BOOL", (-1,)), TensorSpec("image", "FP32", (-1, 3, 16, 16))), (LOGITS,))
    check_task_signature("digits", two, {"other": turned})
    check_task_signature("digits", two, {})


def test_the_first_model_that_differs_is_named() -> None:
    with pytest.raises(InvalidInput, match="in model 'b'"):
        check_task_signature("t", a_signature(), {"c": a_signature(batched=False), "a": a_signature(), "b": a_signature(batched=False)})


def test_what_is_common_leaves_open_what_differs() -> None:
    wide = a_signature(inputs=(TensorSpec("image", "FP32", (-1, 3, 8, 16)),))
    common = common_signature([a_signature(), wide, a_signature()])
    assert common.inputs == (TensorSpec("image", "FP32", (-1, -1, 8, -1)),)
    assert common.outputs == (LOGITS,)
    assert common_signature([a_signature()]) == a_signature()
    assert not common_signature([a_signature(), a_signature(batched=False)]).batched
