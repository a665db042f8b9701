"""A model's bytes: nothing in them refers to other files, and every reader reads them alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from tests.bundles import Files, bundle_files, policy_step, refusal, resealed, write_files
from visuomotor.runtime import BundleError, load_bundle, onnx_file
from visuomotor.runtime.files import MODEL
from visuomotor.runtime.onnx_file import check_self_contained


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


def test_external_data_is_found_in_attributes_and_subgraphs(good: Files):
    check_self_contained(good[MODEL])
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "t")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    constant = onnx.helper.make_node("Constant", [], ["x"], value=tensor)
    inner = onnx.helper.make_graph([constant], "inner", [], [])
    branch = onnx.helper.make_node("If", ["cond"], ["y"], then_branch=inner, else_branch=inner)
    for node in (constant, branch):
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "outer", [], []))
        with pytest.raises(BundleError, match="external data"):
            check_self_contained(model.SerializeToString())


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
@pytest.mark.parametrize("path", [(7,), (7, 5), (7, 1), (7, 15), (7, 1, 5), (7, 1, 5, 5), (20,)])
def test_fields_are_not_hidden_behind_tags_that_others_read_otherwise(
    path: tuple[int, ...], tag: Callable[[int], bytes]
):
    content = _field(path[-1], _outward(), tag)
    for number in reversed(path[:-1]):
        content = _field(number, content)
    with pytest.raises(BundleError, match="malformed"):
        check_self_contained(content)


def test_lengths_have_their_shortest_form(good: Files):
    name = b"\x12"  # producer_name
    check_self_contained(good[MODEL] + name + b"\x01x")
    for length in (b"\x81\x00", b"\x81\x80\x80\x80\x00", b"\x81\x80\x80\x80\x10"):
        with pytest.raises(BundleError, match="malformed"):
            check_self_contained(good[MODEL] + name + length + b"x")


@pytest.mark.parametrize("number", [24, 99, (1 << 29) - 1])
@pytest.mark.parametrize("path", [(), (7,), (7, 1), (7, 1, 5), (7, 5), (7, 15), (20,), (25,)])
def test_fields_that_onnx_does_not_know_are_refused(path: tuple[int, ...], number: int):
    content = _field(number, b"")
    for outer in reversed(path):
        content = _field(outer, content)
    with pytest.raises(BundleError, match=f"unknown field {number}"):
        check_self_contained(content)


def test_each_part_of_a_field_that_stands_twice_is_looked_into(good: Files):
    """ONNX Runtime merges both graphs into one."""
    check_self_contained(good[MODEL] + _field(7, b""))
    for second in (_field(5, _outward()), _field(1, _field(5, _field(5, _outward())))):
        with pytest.raises(BundleError, match="external data"):
            check_self_contained(good[MODEL] + _field(7, second))
        with pytest.raises(BundleError, match="external data"):
            check_self_contained(_field(7, second) + good[MODEL])


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
        check_self_contained(model.SerializeToString())


def test_bytes_that_are_no_model_are_refused(good: Files, write: Callable[[Files], Path]):
    rng = np.random.default_rng(0)
    for garbage in (rng.bytes(5000), b"", b"\x0a\xff\xff\xff\xff\x0f"):
        assert MODEL in refusal(write(resealed(good, {MODEL: garbage})))
