"""A model's bytes: they hold what this project exports and nothing else, nothing in them refers to
other files, every reader reads them alike, and what they ask for is no more than a policy does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import convert_model_to_external_data

from tests.bundles import Files, bundle_files, policy_step, refusal, resealed, write_files
from visuomotor.aux_tasks import View
from visuomotor.hand_position import HandPosition
from visuomotor.pixel_actor import ENCODERS, MAPPED
from visuomotor.runtime import BundleError, bundle, load_bundle, onnx_file
from visuomotor.runtime.files import MODEL
from visuomotor.runtime.onnx_file import Graph, Node, read_graph
from visuomotor.runtime.onnx_sizes import check_sizes, multiplications


@pytest.fixture(scope="module")
def good() -> Files:
    return bundle_files(policy_step(0), "lstm")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Files], Path]:
    return partial(write_files, tmp_path / "bundle")


def test_external_data_is_refused_before_anything_is_read(
    good: Files, write: Callable[[Files], Path]
):
    model = onnx.load_from_string(good[MODEL])
    convert_model_to_external_data(model, location="elsewhere.bin", size_threshold=0)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    folder = write(resealed(good, {MODEL: model.SerializeToString()}))
    assert "external data" in refusal(folder)


def test_only_operators_that_are_exported_are_accepted(good: Files):
    read_graph(good[MODEL])
    for operator in ("Loop", "If", "Scan", "ConstantOfShape", "Expand", "Pad", "Constant", "relu"):
        model = onnx.load_from_string(good[MODEL])
        model.graph.node[3].op_type = operator
        told = f"the operator '{operator}': the bundle was not exported by this project"
        with pytest.raises(BundleError, match=told):
            read_graph(model.SerializeToString())


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ((7, 1, 5, 6), "attribute: unknown field 6"),  # a subgraph
        ((7, 1, 5, 11), "attribute: unknown field 11"),  # several
        ((7, 1, 5, 5), "attribute: unknown field 5"),  # a tensor
        ((7, 15), "graph: unknown field 15"),  # a sparse weight
        ((7, 13), "graph: unknown field 13"),  # a shape that is claimed
        ((7, 5, 7), "tensor: unknown field 7"),  # numbers that are packed
        ((20,), "model: unknown field 20"),  # training
        ((25,), "model: unknown field 25"),  # a function
    ],
)
def test_what_no_export_needs_is_refused(path: tuple[int, ...], told: str):
    content = b""
    for number in reversed(path):
        content = _field(number, content)
    with pytest.raises(BundleError, match=told):
        read_graph(content)


KINDS = [[(0, None)], [(1, 0)]]
HEADS = {
    "target_dim": 9,
    "places": (0, 1),
    "hand": HandPosition(
        [torch.eye(3).flatten().tolist()] * 2, [[0.0, 0, 0.1]] * 2, [0] * 3, [0] * 3
    ),
}
MAPS = HEADS | {"view": View(KINDS, (1.0, 0.0, 1.0), (0.0, 0.0, 0.0), 40.0)}


def test_policies_of_every_encoder_load_and_the_operators_are_theirs(
    write: Callable[[Files], Path],
):
    assert {"keypoints", "compact", "flat", "maps", "wide_maps"} == ENCODERS.keys() | MAPPED.keys()
    used = set()
    for encoder, recurrent, settings in (
        ("keypoints", False, {}),
        ("compact", True, HEADS),
        ("flat", False, HEADS),
        ("maps", True, MAPS | {"reads": "located"}),
        ("wide_maps", False, MAPS),
    ):
        step = policy_step(0, recurrent, encoder, **settings)
        torch.nn.init.normal_(step.actor.mean_head.weight, std=0.1)  # or rounding would count
        files = bundle_files(step, "any")
        load_bundle(write(files))
        used |= {node.operator for node in read_graph(files[MODEL]).nodes}
    assert used == onnx_file.EXPORTED


def _varint(value: int, length: int = 0) -> bytes:
    """In its shortest form, or with zeros up to so many bytes."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    groups += [0] * (length - len(groups))
    return bytes([0x80 | group for group in groups[:-1]] + groups[-1:])


def _field(number: int, content: bytes, tag: Callable[[int], bytes] = _varint) -> bytes:
    return tag(number << 3 | 2) + _varint(len(content)) + content


def _outward() -> bytes:
    """A tensor with its values in another file."""
    tensor = onnx.TensorProto(name="t", dims=[3], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere.bin")
    return tensor.SerializeToString()


@pytest.mark.parametrize(
    "tag",
    [
        lambda tag: _varint(tag | 1 << 32),  # ONNX Runtime cuts the bit off
        lambda tag: _varint(tag | 1 << 34),
        lambda tag: _varint(tag | 1 << 63),
        lambda tag: _varint(tag, length=2),
        lambda tag: _varint(tag, length=5),
        lambda tag: _varint(tag, length=10),
        lambda tag: _varint(tag ^ 1),  # a group's begin
        lambda tag: _varint(tag ^ 6),  # a group's end
        lambda tag: _varint(tag ^ 7),
        lambda tag: _varint(tag ^ 4),
    ],
)
@pytest.mark.parametrize("path", [(7,), (7, 5), (7, 1), (7, 11), (7, 12), (7, 1, 5), (8,)])
def test_fields_are_not_hidden_behind_tags_that_others_read_otherwise(
    path: tuple[int, ...], tag: Callable[[int], bytes]
):
    content = _field(path[-1], _outward(), tag)
    for number in reversed(path[:-1]):
        content = _field(number, content)
    with pytest.raises(BundleError, match="malformed"):
        read_graph(content)


def test_lengths_have_their_shortest_form(good: Files):
    name = b"\x12"  # producer_name
    read_graph(good[MODEL] + name + b"\x01x")
    for length in (b"\x81\x00", b"\x81\x80\x80\x80\x00", b"\x81\x80\x80\x80\x10"):
        with pytest.raises(BundleError, match="malformed"):
            read_graph(good[MODEL] + name + length + b"x")


@pytest.mark.parametrize("number", [24, 99, (1 << 29) - 1])
@pytest.mark.parametrize("path", [(), (7,), (7, 1), (7, 1, 5), (7, 5), (7, 11), (8,)])
def test_fields_that_onnx_does_not_know_are_refused(path: tuple[int, ...], number: int):
    content = _field(number, b"")
    for outer in reversed(path):
        content = _field(outer, content)
    with pytest.raises(BundleError, match=f"unknown field {number}"):
        read_graph(content)


def test_each_part_of_a_field_that_stands_twice_is_looked_into(good: Files):
    """ONNX Runtime merges both graphs into one."""
    read_graph(good[MODEL] + _field(7, b""))
    loop = _field(1, _field(4, b"Loop"))
    for second, told in ((_field(5, _outward()), "external data"), (loop, "operator 'Loop'")):
        with pytest.raises(BundleError, match=told):
            read_graph(good[MODEL] + _field(7, second))
        with pytest.raises(BundleError, match=told):
            read_graph(_field(7, second) + good[MODEL])


def test_the_fields_that_are_known_here_are_those_of_onnx():
    seen: dict[str, Any] = {}

    def visit(message: str, descriptor: Any) -> None:
        if message in seen:
            assert seen[message] is descriptor
            return
        seen[message] = descriptor
        fields = {field.number: field for field in descriptor.fields}
        assert onnx_file._KNOWN[message] <= fields.keys()
        messages = {n: f.message_type for n, f in fields.items() if f.message_type is not None}
        for number, child in onnx_file._CHILDREN[message].items():
            visit(child, messages[number])

    visit("model", onnx.ModelProto.DESCRIPTOR)
    assert seen.keys() == onnx_file._KNOWN.keys() == onnx_file._CHILDREN.keys()
    # Whatever else may hold one of these messages is not known, so refused.
    for message, descriptor in seen.items():
        inner = {f.number for f in descriptor.fields if f.message_type in seen.values()}
        assert inner & onnx_file._KNOWN[message] == onnx_file._CHILDREN[message].keys()


def test_onnx_runtime_reads_what_was_looked_into_and_no_format_of_its_own(
    good: Files, write: Callable[[Files], Path]
):
    """Bytes 4 to 8 say ORTM; before them stands a producer's name."""
    both = _field(2, b"xxORTM") + good[MODEL]
    with pytest.raises(Exception, match="ORT model"):
        onnxruntime.InferenceSession(both, providers=["CPUExecutionProvider"])
    assert load_bundle(write(resealed(good, {MODEL: both}))).replay.max_error < 1e-5


def test_operators_of_other_domains_are_refused(good: Files):
    model = onnx.load_from_string(good[MODEL])
    model.graph.node[0].domain = "com.somebody"
    with pytest.raises(BundleError, match=r"domain b'com\.somebody'"):
        read_graph(model.SerializeToString())


@pytest.mark.parametrize(("domain", "version"), [("", 17), ("", 19), ("ai.onnx", 18), ("x", 1)])
def test_operators_of_other_versions_are_refused(good: Files, domain: str, version: int):
    """What ONNX Runtime makes of their sizes may be something else."""
    model = onnx.load_from_string(good[MODEL])
    model.opset_import.append(onnx.helper.make_opsetid(domain, version))
    with pytest.raises(BundleError, match="opset 18, the one"):
        read_graph(model.SerializeToString())
    del model.opset_import[:]
    with pytest.raises(BundleError, match="does not say"):
        read_graph(model.SerializeToString())


# --- sizes ---------------------------------------------------------------------------------------


def _grown(good: Files, nodes: list[onnx.NodeProto], **weights: np.ndarray) -> bytes:
    """The good model, with further nodes whose last output, all zeros, is added to a velocity."""
    model = onnx.load_from_string(good[MODEL])
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    at = next(i for i, n in enumerate(model.graph.node) if "joint_velocities" in n.output)
    model.graph.node[at].output[0] = "former"
    add = onnx.helper.make_node("Add", ["former", "sum"], ["joint_velocities"])
    total = onnx.helper.make_node("ReduceSum", [nodes[-1].output[0]], ["sum"], keepdims=0)
    model.graph.node.extend([*nodes, total, add])
    return model.SerializeToString()


def _chain(operator: str, count: int) -> list[onnx.NodeProto]:
    """Each of two of the one before: w, x0, x1..."""
    names = ["w", *(f"x{i}" for i in range(count))]
    attributes = {"axis": 0} if operator == "Concat" else {}
    return [
        onnx.helper.make_node(operator, [names[i]] * 2, [names[i + 1]], **attributes)
        for i in range(count)
    ]


def test_a_tensor_of_any_size_out_of_a_few_bytes_never_reaches_onnx_runtime(
    good: Files, write: Callable[[Files], Path], monkeypatch: pytest.MonkeyPatch
):
    node = onnx.helper.make_node("ConstantOfShape", ["shape"], ["zeros"])
    model = _grown(good, [node], shape=np.array([200_000_000]))
    monkeypatch.setattr(bundle, "_open_session", None)  # nothing may be opened
    assert "the operator 'ConstantOfShape'" in refusal(write(resealed(good, {MODEL: model})))


def test_the_good_model_with_a_little_more_is_accepted(good: Files, write: Callable[[Files], Path]):
    model = _grown(good, _chain("Concat", 10), w=np.zeros(3, np.float32))
    assert load_bundle(write(resealed(good, {MODEL: model}))).replay.max_error < 1e-5


W = np.zeros((8, 1), np.float32)
SQUARE = np.zeros((200, 200), np.float32)
TURNED = onnx.helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])
PADDED = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[99_999] * 4)
CUT = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[200] * 4)


@pytest.mark.parametrize(
    ("nodes", "weights", "told"),
    [
        (_chain("Concat", 40), {"w": W}, "numbers a step"),
        (
            [TURNED, onnx.helper.make_node("Mul", ["w", "t"], ["y"])],
            {"w": np.zeros((3000, 1), np.float32)},
            "numbers a step",
        ),
        ([PADDED], {"x": W[None, None], "w": W[None, None, :1]}, "numbers a step"),
        (_chain("MatMul", 5), {"w": SQUARE}, "multiplications a step"),
        ([CUT], {"x": SQUARE[None, None], "w": SQUARE[None, None]}, "multiplications a step"),
    ],
    ids=["doubled", "row by column", "padded", "matrices", "kernel"],
)
def test_what_takes_more_than_a_policy_is_refused_before_any_of_it_runs(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    told: str,
    good: Files,
    write: Callable[[Files], Path],
    monkeypatch: pytest.MonkeyPatch,
):
    model = _grown(good, nodes, **weights)
    monkeypatch.setattr(bundle, "Bundle", None)  # opens the model for use
    message = refusal(write(resealed(good, {MODEL: model})))
    assert told in message
    assert "not exported by this project" in message


@pytest.mark.parametrize("operator", sorted(onnx_file.SIZED))
def test_a_size_that_is_no_constant_is_refused(operator: str, good: Files):
    size = onnx.helper.make_node("Cast", ["proprio"], ["size"], to=onnx.TensorProto.INT64)
    for name, weights in (("size", {}), ("long", {"long": np.zeros(9, np.int64)})):
        node = onnx.helper.make_node(operator, ["w", name], ["y"])
        with pytest.raises(BundleError, match=f"{operator}: how large its output is"):
            read_graph(_grown(good, [size, node], w=W, **weights))


def test_a_constant_that_an_input_replaces_is_none(good: Files):
    model = onnx.load_from_string(good[MODEL])
    weight = model.graph.initializer[0]
    model.graph.input.append(
        onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
    )
    with pytest.raises(BundleError, match="is a weight and more than that"):
        read_graph(model.SerializeToString())


@pytest.mark.parametrize("dims", [[2**40], [2**33, 2**33], [-1], [1] * 9])
def test_weights_are_not_larger_than_what_the_file_holds(dims: list[int], good: Files):
    model = onnx.load_from_string(good[MODEL])
    del model.graph.initializer[1].dims[:]
    model.graph.initializer[1].dims.extend(dims)
    with pytest.raises(BundleError, match=r"is said to be|dimensions"):
        read_graph(model.SerializeToString())


@pytest.mark.parametrize("claimed", [[], [1], [1, 9], ["n", 9], None])
def test_shapes_that_a_model_claims_of_its_outputs_are_not_believed(
    claimed: list[int | str] | None, good: Files, write: Callable[[Files], Path]
):
    """ONNX Runtime would take the claim of another rank for a reason to infer nothing."""
    model = onnx.load_from_string(_grown(good, _chain("Concat", 40), w=W))
    value = onnx.helper.make_tensor_value_info("x20", onnx.TensorProto.FLOAT, claimed)
    model.graph.output.append(value)
    message = refusal(write(resealed(good, {MODEL: model.SerializeToString()})))
    assert "numbers a step" in message


def test_descriptions_and_graphs_of_any_length_are_refused(good: Files):
    model = onnx.load_from_string(good[MODEL])
    model.graph.input[0].type.tensor_type.shape.dim.extend(
        [onnx.TensorShapeProto.Dimension()] * 999
    )
    with pytest.raises(BundleError, match="more than 1000 bytes"):
        read_graph(model.SerializeToString())
    with pytest.raises(BundleError, match="more than 500 nodes"):
        read_graph(_grown(good, _chain("Mul", 500), w=W))


def test_sizes_that_nothing_tells_are_refused():
    graph = Graph([Node("Relu", ("x",), ("y",))], {})
    check_sizes(graph, {"x": [1, 3], "y": [1, 3]}, 400, 1000)
    for unknown in ([1, None], [1, "n"], [1, -1], [1] * 9):
        with pytest.raises(BundleError, match=r"the shape of 'y' is"):
            check_sizes(graph, {"x": [1, 3], "y": unknown}, 400, 1000)


def test_multiplications_are_those_of_a_hand_worked_layer():
    """3 channels of 4x5 by 7 kernels of 2x2 -> 7 of 3x4; 6 inputs by 5 outputs; an LSTM of 4."""
    assert multiplications("Conv", [(1, 3, 4, 5), (7, 3, 2, 2)], [(1, 7, 3, 4)]) == 7 * 12 * 12
    assert multiplications("Gemm", [(1, 6), (5, 6), (5,)], [(1, 5)]) == 30
    assert multiplications("MatMul", [(2, 6), (6, 5)], [(2, 5)]) == 60
    weights = [(1, 1, 6), (1, 16, 6), (1, 16, 4)]
    assert multiplications("LSTM", weights, [(1, 1, 1, 4)]) == 16 * 6 + 16 * 4


def test_bytes_that_are_no_model_are_refused(good: Files, write: Callable[[Files], Path]):
    rng = np.random.default_rng(0)
    for garbage in (rng.bytes(5000), b"", b"\x0a\xff\xff\xff\xff\x0f"):
        assert MODEL in refusal(write(resealed(good, {MODEL: garbage})))
