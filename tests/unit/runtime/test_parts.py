"""The small pure parts: control messages, holds, classes, made-up inputs, the ONNX reader."""

from __future__ import annotations

import mmap
import struct
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tessera.domain.errors import DataCorrupted, InvalidInput, NotFound, Unsupported
from tessera.domain.signature import Signature, TensorSpec
from tessera.runtime import backends, classes, control, memory
from tessera.runtime.backends.ort.graph import ELEMENT_TYPES, Initializer, external_initializers, warm_graph
from tessera.runtime.holds import Holds
from tessera.runtime.measure import RowLimits, measure, synthetic_inputs


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3), max_size=4), st.data())
def test_control_messages_survive_any_cut(messages, data):
    messages = [
        {key: min(max(value, -(2**63)), 2**63 - 1) if isinstance(value, int) else value for key, value in m.items()} for m in messages
    ]
    stream = b"".join(control.encode(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder, found = control.ControlDecoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += decoder.feed(stream[start:end])
    assert found == messages


@pytest.mark.parametrize(
    ("data", "words"),
    [(struct.pack("<I", 1 << 30), "at most"), (b"\x02\x00\x00\x00[]", "JSON object"), (b"\x01\x00\x00\x00{", "JSON object")],
)
def test_broken_control_messages(data, words):
    with pytest.raises(InvalidInput, match=words):
        list(control.ControlDecoder().feed(data))


def test_answers_carry_errors_as_their_class():
    (message,) = control.ControlDecoder().feed(control.refusal(3, NotFound("blob x")))
    assert message["id"] == 3
    with pytest.raises(NotFound, match="blob x"):
        control.answer_of(message)
    assert control.answer_of({"id": 1, "ok": {"a": 1}}) == {"a": 1}
    with pytest.raises(InvalidInput):
        control.answer_of({"id": 1})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: control.text_field({"a": ""}, "a"), "not empty"),
        (lambda: control.whole_field({"a": True}, "a"), "whole number"),
        (lambda: control.whole_field({"a": 0}, "a", minimum=1), "at least 1"),
        (lambda: control.whole_field({}, "a"), "whole number"),
        (lambda: control.number_field({"a": -1}, "a", 0), "at least 0"),
        (lambda: control.number_field({"a": float("nan")}, "a", 0), "at least 0"),
        (lambda: control.generation_field({"generation": "0x1"}), "16 lowercase hex"),
    ],
)
def test_control_fields_name_what_is_wrong(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()


def test_generation_survives_as_text():
    for generation in (0, 1, 2**64 - 1):
        assert control.generation_field({"generation": control.generation_text(generation)}) == generation


def test_holds_last_as_long_as_anybody_wants_them():
    holds = Holds()
    holds.use("one", ["a", "b"])
    holds.use("two", ["b", "c"])
    assert holds.held() == {"a", "b", "c"}
    assert holds.end("one") == ["a"], "b is another's too"
    assert holds.end("two") == ["b", "c"]
    assert holds.held() == set()
    assert holds.end("two") == []


CPUINFO = "processor : 0\nmodel name\t: Fast CPU @ 3.0 (R)\nflags\t\t: fpu {}\n"


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("sse avx avx2 avx512f avx512_vnni", "avx512_vnni"),
        ("avx avx2 avx512f", "avx512"),
        ("avx2 avx", "avx2"),
        ("avx512_vnni avx512_bf16", "avx512_bf16"),
        ("amx_int8 avx512_bf16 avx512_vnni", "amx_int8"),
        ("sse", "base"),
    ],
)
def test_build_class_names_the_best_instruction_set(flags, isa):
    assert classes.build_class(CPUINFO.format(flags), "x86_64", "1.32.0") == f"x86_64-{isa}-ort1.32.0"


def test_profile_class_adds_the_cpu_and_its_cores():
    build = classes.build_class("Features : asimd asimddp\n", "aarch64", "1")
    assert build == "aarch64-dotprod-ort1"
    assert classes.profile_class(CPUINFO.format("avx2"), 4, build) == f"{build}-fast-cpu-3-0-r-4c"
    assert classes.build_class() == classes.build_class()
    assert classes.profile_class().startswith(classes.build_class())


def test_memory_figures_are_of_this_process(tmp_path):
    before = memory.anonymous_bytes()
    block = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # new pages whatever the heap has free
    block.write(b"x" * (8 << 20))
    assert memory.anonymous_bytes() - before > 7 << 20
    use = memory.memory_use(tmp_path)
    assert use.private_bytes > 8 << 20
    assert use.proportional_bytes > 8 << 20
    block.close()


def test_pages_of_the_store_never_count_as_private(tmp_path):
    """However few processes map them."""
    from tessera.tensorstore.mapping import BlobMap

    path = tmp_path / "blobs" / ("0" * 64)
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * (16 << 12))
    mapped = BlobMap()
    before = memory.memory_use(tmp_path)
    view = mapped.open(path)
    assert sum(view[::4096]) == 0
    after = memory.memory_use(tmp_path)
    assert after.private_bytes - before.private_bytes < 4 << 20
    assert after.proportional_bytes - before.proportional_bytes > 12 << 20
    assert memory.memory_use(tmp_path / "elsewhere").private_bytes - before.private_bytes > 12 << 20


def test_made_up_inputs_suit_any_signature():
    specs = (
        TensorSpec("input_ids", "INT64", (-1, -1)),
        TensorSpec("attention_mask", "INT64", (-1, -1)),
        TensorSpec("image", "FP32", (-1, 3, 8, 8)),
        TensorSpec("half", "BF16", (-1, 2)),
        TensorSpec("flag", "BOOL", (-1,)),
        TensorSpec("text", "BYTES", (-1,)),
    )
    inputs = synthetic_inputs(Signature(specs, ()), 3)
    assert inputs["input_ids"].array.shape == (3, 32)
    assert 0 <= inputs["input_ids"].array.min() <= inputs["input_ids"].array.max() < 100
    assert (inputs["attention_mask"].array == 1).all()
    assert inputs["image"].array.shape == (3, 3, 8, 8)
    assert inputs["half"].array.dtype == np.uint16
    assert inputs["text"].array.tolist() == [b"tessera"] * 3
    again = synthetic_inputs(Signature(specs, ()), 3)
    assert all(np.array_equal(inputs[name].array, again[name].array) for name in inputs)


def test_measuring_repeats_until_both_limits_are_reached():
    class Ticks:
        """Every reading is 10 ms later."""

        now = 0.0

        def monotonic_s(self) -> float:
            self.now += 0.01
            return self.now

        def wall_s(self) -> float:
            return 0.0

        async def sleep(self, seconds: float) -> None: ...

    class Model:
        inline = False
        runs = 0

        def run(self, inputs):
            self.runs += 1
            return {}

        def close(self) -> None: ...

    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), ())
    found = measure([Model()], signature, 1, RowLimits(0.0, 5), Ticks())
    assert (found.repeats, round(found.quantiles_ms[100]), round(found.mean_ms)) == (5, 10, 10)
    assert measure([Model()], signature, 1, RowLimits(1.0, 1), Ticks()).repeats == 50
    with pytest.raises(InvalidInput, match=r"at most 300"):
        measure([Model()], signature, 1, RowLimits(1e9, 1), Ticks())


def test_onnx_reader_sees_what_onnx_wrote():
    inline = helper.make_tensor("shape", TensorProto.INT64, [2], [1, -1])
    external = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[300, 4], data_location=TensorProto.EXTERNAL)
    external.external_data.add(key="location", value="tessera")
    scalar = TensorProto(name="s", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [], [inline, external, scalar])
    found = external_initializers(helper.make_model(graph).SerializeToString())
    assert found == {"w": Initializer(10, (300, 4)), "s": Initializer(1, ())}
    with pytest.raises(DataCorrupted):
        external_initializers(b"\xff\xff")


def test_element_types_are_onnxs():
    for datatype, number in ELEMENT_TYPES.items():
        name = {"FP32": "FLOAT", "FP64": "DOUBLE", "FP16": "FLOAT16", "BF16": "BFLOAT16"}.get(datatype, datatype)
        assert TensorProto.DataType.Value(name) == number


def test_warm_graph_is_a_sound_model(tmp_path):
    data, inputs, weights = warm_graph()
    model = onnx.load_from_string(data)
    assert set(external_initializers(data)) == set(weights)
    for tensor in model.graph.initializer:
        array = weights[tensor.name][0]
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.checker.check_model(model)
    (answer,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)
    assert answer.shape == (1, 16, 22, 64)


def test_flavours_name_their_backends():
    assert backends.names("ort") == ("identity", "ort")
    with pytest.raises(Unsupported, match="there are ort, aten"):
        backends.names("tpu")


ROOM = """
import os, resource
from tessera.runtime.process import make_room_for_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, LIMITS)
before = os.listdir("/proc/self/fd")
make_room_for_descriptors()
table = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("FDSize"))
print(*resource.getrlimit(resource.RLIMIT_NOFILE), int(table), len(os.listdir("/proc/self/fd")) - len(before))
"""


@pytest.mark.parametrize(("limits", "table"), [((100, 300), 300), ((300, 300), 300), ((128, 6000), 4096)])
def test_room_for_open_files_is_made_once_and_as_far_as_the_limit_allows(limits, table):
    command = [sys.executable, "-c", ROOM.replace("LIMITS", str(limits))]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    soft, hard, places, left_open = map(int, found.stdout.split())
    assert (soft, hard, left_open) == (limits[1], limits[1], 0)
    assert table <= places < 2 * table
