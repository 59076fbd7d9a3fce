"""The flat program in bfloat16: what eager PyTorch answers under autocast, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.domain.artifact import AUTOCAST, Artifact, TensorRef
from tessera.domain.errors import Unsupported
from tessera.domain.ids import BuildClass, Digest
from tessera.domain.signature import Signature, TensorSpec
from tessera.registry.importer.flatten import Flat, flatten
from tessera.runtime import recipes
from tessera.runtime.backends.aten.backend import AtenBackend
from tessera.runtime.backends.interface import BackendConfig, Tensor
from tessera.runtime.recipes import bf16
from tessera.runtime.recipes.base import Built, Work

CLASS = BuildClass("x86_64-avx512_bf16-ort1")
SIGNATURE = Signature(
    (TensorSpec("image", "FP32", (-1, 3, 8, 8)), TensorSpec("ids", "INT64", (-1, 16))),
    (TensorSpec("scores", "FP32", (-1, 5)), TensorSpec("best", "INT64", (-1,))),
)


class Net(torch.nn.Module):
    """Products and convolutions, and between them what keeps its weights in float32; `table` is both multiplied and looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.normal = torch.nn.BatchNorm2d(16)
        self.query = torch.nn.Linear(16, 16)
        self.layer = torch.nn.LayerNorm(16)
        self.table = torch.nn.Embedding(7, 16)
        self.head = torch.nn.Linear(16, 5, bias=False)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.normal(self.convolution(image))).flatten(2).transpose(1, 2)
        words = self.table(ids)
        x = torch.nn.functional.scaled_dot_product_attention(self.layer(self.query(x)), words, words, torch.ones(1, 16) * -0.5)
        scores = self.head(torch.nn.functional.gelu(x).mean(1)) + (x @ self.table.weight.t()).softmax(-1)[:, 0, :5]
        return scores, scores.argmax(-1)


def drawn() -> tuple[Net, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(3)
    return Net().eval(), (torch.randn(2, 3, 8, 8), torch.randint(7, (2, 16)))


def exported(net: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Flat:
    with torch.no_grad():
        return flatten(torch.export.export(net, inputs, strict=False), ["image", "ids"], lambda count: ["scores", "best"][:count], str)


def built(flat: Flat, tmp_path: Path) -> Built:
    tensors = {name: tensor.detach().numpy() for name, tensor in flat.tensors}
    artifact = Artifact("aten", "fp32", "aten", None, None, (), SIGNATURE, None, 4)

    def calibrate() -> Any:
        raise AssertionError("no ranges are needed")

    return bf16.make(Work(artifact, flat.graph, tensors, [], calibrate, CLASS, tmp_path, lambda step, share: None))


def answers(made: Built, inputs: dict[str, np.ndarray], tmp_path: Path) -> dict[str, Tensor]:
    class Bytes:
        def graph(self) -> bytes:
            return made.graph

        def tensors(self) -> dict[str, np.ndarray]:
            return {name: array for name, (array, _) in made.tensors.items()}

        def derived(self, make: Any) -> Any:
            return make()

    refs = tuple(TensorRef(name, dtype, array.shape, Digest(""), array.nbytes) for name, (array, dtype) in made.tensors.items())
    artifact = Artifact("aten", made.precision, "aten", None, None, refs, SIGNATURE, CLASS, 4, made.options)
    loaded = AtenBackend(BackendConfig(torch.get_num_threads(), tmp_path)).load(artifact, Digest(""), Bytes())
    return loaded.run({"image": Tensor("FP32", inputs["image"]), "ids": Tensor("INT64", inputs["ids"])})


def test_answers_are_those_of_eager_autocast(tmp_path: Path) -> None:
    net, inputs = drawn()
    made = built(exported(net, inputs), tmp_path)
    got = answers(made, {"image": inputs[0].numpy(), "ids": inputs[1].numpy()}, tmp_path)
    with torch.inference_mode():
        exact = net(*inputs)[0].numpy()
        with torch.autocast("cpu", torch.bfloat16):
            scores, best = net(*inputs)
    assert (got["scores"].datatype, got["best"].datatype) == ("FP32", "INT64")
    np.testing.assert_array_equal(got["scores"].array, scores.float().numpy())
    np.testing.assert_array_equal(got["best"].array, best.numpy())
    error = np.abs(got["scores"].array - exact).max()
    assert 0 < error < 0.02 * np.abs(exact).max()


def test_weights_that_are_multiplied_alone_are_stored_in_half_the_bytes_and_no_others(tmp_path: Path) -> None:
    net, inputs = drawn()
    flat = exported(net, inputs)
    made = built(flat, tmp_path)
    assert (made.precision, made.exact, made.options) == ("bf16", False, (AUTOCAST,))
    half = {name for name, (_, dtype) in made.tensors.items() if dtype == "BF16"}
    assert half == {"convolution.weight", "convolution.bias", "query.weight", "query.bias", "head.weight"}
    for name, tensor in flat.tensors:
        array, _ = made.tensors[name]
        wanted = tensor.detach().to(torch.bfloat16).view(torch.int16) if name in half else tensor.detach()
        assert array.tobytes() == wanted.numpy().tobytes()


def test_siblings_have_one_graph(tmp_path: Path) -> None:
    net, inputs = drawn()
    first = built(exported(net, inputs), tmp_path)
    torch.nn.init.zeros_(net.head.weight)
    second = built(exported(net, inputs), tmp_path)
    assert first.graph == second.graph
    assert [name for name in first.tensors if first.tensors[name][0].tobytes() != second.tensors[name][0].tobytes()] == ["head.weight"]


def test_a_program_without_products_is_refused(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return image.sum((1, 2, 3)) + ids.sum(1)

    with pytest.raises(Unsupported, match="aten-bf16: no product and no convolution of the program has a weight of its own"):
        built(exported(Sum().eval(), drawn()[1]), tmp_path)


@pytest.mark.parametrize("isa", ["amx_int8", "avx512_bf16", "i8mm", "bf16"])
def test_it_is_built_where_the_cpu_multiplies_bfloat16(isa: str) -> None:
    recipes.check_here("aten-bf16", BuildClass(f"m-{isa}-ort1"))


@pytest.mark.parametrize("isa", ["avx512_vnni", "avx512", "avx2", "sve", "base"])
def test_elsewhere_it_is_not_and_says_why(isa: str) -> None:
    with pytest.raises(Unsupported, match=f"aten-bf16 needs a CPU that multiplies bfloat16: class m-{isa}-ort1 does not"):
        recipes.check_here("aten-bf16", BuildClass(f"m-{isa}-ort1"))
    recipes.check_here("ort-int8", BuildClass(f"m-{isa}-ort1"))
