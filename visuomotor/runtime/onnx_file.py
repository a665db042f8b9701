"""Looks into a serialized ONNX model before ONNX Runtime may: is it what this project exports?

ONNX can say far more than a policy needs: a tensor can name a file to read its values from, a graph
can hold loops, and a few bytes can ask for a tensor of any size. So only what `visuomotor.export`
writes is accepted: its operators, its fields, sizes that are constants of the file. How large all
of it is, `onnx_sizes` judges.

The check walks the protocol buffer itself, because the arm's side does not install `onnx`. Field
numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3), wire
types those of https://protobuf.dev/programming-guides/encoding.

Other readers take liberties: ONNX Runtime's cuts a tag to 32 bits and skips what it does not know.
So that it can see nothing that was not seen here, only what a writer of ONNX writes is accepted:
numbers in their shortest form, and fields that are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from visuomotor.runtime.errors import BundleError

OPSET = 18  # of the operators; what ONNX Runtime infers of their sizes depends on it
# Every operator that an actor of any encoder, with an LSTM or without one, is exported to.
EXPORTED = frozenset(
    {
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Conv",
        "Div",
        "Elu",
        "Equal",
        "Gather",
        "Gemm",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
# What other releases of the exporter may write in their place: an output as large as the inputs.
OPERATORS = EXPORTED | frozenset(
    {
        *("Abs", "And", "Erf", "Exp", "Flatten", "Greater", "GreaterOrEqual", "Identity"),
        *("IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "Max", "Min", "Neg", "Not", "Or", "Pow"),
        *("Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "Sign", "Sqrt", "Tanh"),
    }
)
# Of these, all inputs but the first are numbers that say how large the output is.
SIZED = frozenset(
    {
        *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
        *("Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"),
    }
)

# Messages that are looked into: {message: {field number: message in it}}.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value"},
    "node": {5: "attribute"},
    "attribute": {},
    "tensor": {},
    "value": {},
    "opset": {},
}
# The fields of these messages that an export writes, or that change nothing. Among the others are
# a model's training and functions, a node's subgraphs, a tensor's sparse and packed values, and
# shapes that a graph claims of its own tensors.
_KNOWN: dict[str, frozenset[int]] = {
    "model": frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14}),
    "graph": frozenset({1, 2, 5, 10, 11, 12, 16}),
    "node": frozenset({1, 2, 3, 4, 5, 6, 7, 9}),
    "attribute": frozenset({1, 2, 3, 4, 8, 13, 20}),
    "tensor": frozenset({1, 2, 8, 9, 12, 13, 14, 16}),
    "value": frozenset({1, 2, 3, 4}),
    "opset": frozenset({1, 2}),
}
_MODEL_GRAPH, _GRAPH_OUTPUT, _VALUE_NAME = 7, 12, 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_DOMAIN = 1, 2, 4, 7
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_RAW_DATA = 1, 8, 9
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 200_000  # a policy's graph has a few thousand
MAX_NODES = 500  # a policy has up to 100
MAX_RANK = 8  # dimensions of a tensor; a policy's have up to 5
MAX_VALUE_BYTES = 1000  # of the description of an input or output; a policy's take 32
_TAG_BYTES = 5  # 32 bits, in groups of 7; a length has 31
_VALUE_BYTES = 10  # 64 bits


class Node(NamedTuple):
    """One operation of a graph."""

    operator: str
    inputs: tuple[str, ...]  # tensors' names; "": one that is left out
    outputs: tuple[str, ...]


class Graph(NamedTuple):
    """What a model computes; the shapes of what is no constant are not in the file."""

    nodes: list[Node]
    weights: dict[str, tuple[int, ...]]  # the constants: name to shape


class _Field(NamedTuple):
    number: int
    wire_type: int
    value: int  # of a varint
    begin: int  # of the payload
    end: int


def read_graph(model: bytes) -> Graph:
    """Raises BundleError if the model holds anything that this project does not export, such as
    other operators or references to other files, or is no protocol buffer that every reader
    understands alike."""
    walk = _Walk(model)
    walk.visit("model", 0, len(model))
    if walk.opsets == 0:
        raise BundleError(f"policy.onnx does not say that its operators are of opset {OPSET}")
    # A weight of the same name as an input is a mere default for it.
    both = walk.values & walk.graph.weights.keys()
    if both:
        raise BundleError(f"policy.onnx is malformed: {min(both)!r} is a weight and more than that")
    for node in walk.graph.nodes:
        _check_size_is_constant(node, walk.graph.weights)
    return walk.graph


def with_all_outputs(model: bytes, graph: Graph) -> bytes:
    """-> the model with each of its tensors as an output, none of which claims a shape. For asking
    ONNX Runtime what it makes of the shapes; `model` has passed `read_graph`."""
    walk = _Walk(model)
    parts, at = [], 0
    for field in walk.fields(0, len(model)):
        if field.number != _MODEL_GRAPH:
            parts.append(model[at : field.end])
        else:
            kept, inner = [], field.begin
            for part in walk.fields(field.begin, field.end):
                kept += [model[inner : part.end]] if part.number != _GRAPH_OUTPUT else []
                inner = part.end
            parts.append(_message(_MODEL_GRAPH, b"".join(kept)))
        at = field.end
    names = [name for node in graph.nodes for name in node.outputs if name]
    outputs = [_message(_GRAPH_OUTPUT, _message(_VALUE_NAME, name.encode())) for name in names]
    # A second graph is merged into the first.
    return b"".join((*parts, _message(_MODEL_GRAPH, b"".join(outputs))))


class _Walk:
    def __init__(self, data: bytes):
        self.graph = Graph([], {})
        self.values: set[str] = set()  # names of inputs and outputs
        self.opsets = 0
        self._data = data
        self._seen = 0

    def visit(self, message: str, begin: int, end: int) -> None:
        children = _CHILDREN[message]
        fields: list[_Field] = []
        # A field that occurs twice is merged by ONNX Runtime: each occurrence is looked into.
        for field in self.fields(begin, end):
            if field.number not in _KNOWN[message]:
                raise BundleError(
                    f"policy.onnx: {message}: unknown field {field.number}, which no policy has "
                    "that this project exports"
                )
            if message == "tensor":
                _check_inside(field)
            elif message == "node":
                self._check_operator(field)
            if field.number in children:
                self._demand(message, field, _BYTES)
                self.visit(children[field.number], field.begin, field.end)
            fields.append(field)
        self._keep(message, fields)

    def _check_operator(self, field: _Field) -> None:
        """Before what else the node holds is looked into: this tells most of it."""
        if field.number == _NODE_OPERATOR:
            operator = self._text("node", field)
            if operator not in OPERATORS:
                raise BundleError(
                    f"policy.onnx uses the operator {operator[:40]!r}: the bundle was not exported "
                    "by this project"
                )
        elif field.number == _NODE_DOMAIN and self._text("node", field) != "":
            domain = self._data[field.begin : field.end]
            raise BundleError(
                f"policy.onnx uses operators of the domain {domain[:40]!r}: the bundle was not "
                "exported by this project"
            )

    def _keep(self, message: str, fields: list[_Field]) -> None:
        """What is needed of a message that was looked into."""
        if message == "node":
            inputs, outputs = (
                tuple(self._text(message, field) for field in fields if field.number == number)
                for number in (_NODE_INPUT, _NODE_OUTPUT)
            )
            operator = self._text(message, _single(message, fields, _NODE_OPERATOR))
            self.graph.nodes.append(Node(operator, inputs, outputs))
            if len(self.graph.nodes) > MAX_NODES:
                raise BundleError(f"policy.onnx has more than {MAX_NODES} nodes")
        elif message == "tensor":
            self._keep_weight(fields)
        elif message == "value":
            if fields and fields[-1].end - fields[0].begin > MAX_VALUE_BYTES:
                raise BundleError(
                    f"policy.onnx describes an input or output in more than {MAX_VALUE_BYTES} bytes"
                )
            self.values.add(self._text(message, _single(message, fields, _VALUE_NAME)))
        elif message == "opset":
            self.opsets += 1
            version = _single(message, fields, _OPSET_VERSION)
            named = any(f.end > f.begin for f in fields if f.number == _OPSET_DOMAIN)
            if named or version.wire_type != _VARINT or version.value != OPSET:
                raise BundleError(
                    f"policy.onnx uses operators of other sets than ONNX's opset {OPSET}, the one "
                    "that this project exports"
                )

    def _keep_weight(self, fields: list[_Field]) -> None:
        name = self._text("tensor", _single("tensor", fields, _TENSOR_NAME))
        shape: list[int] = []
        for field in fields:
            if field.number == _TENSOR_DIMS:
                shape += self._numbers(field)
        if len(shape) > MAX_RANK:
            raise BundleError(f"policy.onnx: {name[:40]!r} has more than {MAX_RANK} dimensions")
        stored = sum(f.end - f.begin for f in fields if f.number == _TENSOR_RAW_DATA)
        if math.prod(shape) > stored:
            raise BundleError(
                f"policy.onnx: {name[:40]!r} is said to be {shape}, in {stored} bytes of values"
            )
        self.graph.weights[name] = tuple(shape)

    def _numbers(self, field: _Field) -> list[int]:
        """Of a dimension, or of several that are packed."""
        if field.wire_type == _VARINT:
            return [field.value]
        self._demand("tensor", field, _BYTES)
        numbers: list[int] = []
        at = field.begin
        while at < field.end and len(numbers) <= MAX_RANK:
            number, at = self._varint(at, field.end, _VALUE_BYTES)
            numbers.append(number)
        return numbers

    def _text(self, message: str, field: _Field) -> str:
        self._demand(message, field, _BYTES)
        try:
            return self._data[field.begin : field.end].decode()
        except UnicodeDecodeError as error:
            raise BundleError(f"policy.onnx is malformed: {message}: {error}") from error

    def _demand(self, message: str, field: _Field, wire_type: int) -> None:
        if field.wire_type != wire_type:
            raise BundleError(
                f"policy.onnx is malformed: {message}: field {field.number} has wire type "
                f"{field.wire_type}"
            )

    def fields(self, begin: int, end: int) -> Iterator[_Field]:
        at = begin
        while at < end:
            self._seen += 1
            if self._seen > MAX_FIELDS:
                raise BundleError(f"policy.onnx has more than {MAX_FIELDS} fields")
            tag, at = self._shortest(at, end)
            number, wire_type = tag >> 3, tag & 7
            value, payload = 0, at
            if wire_type == _VARINT:
                value, at = self._varint(at, end, _VALUE_BYTES)
            elif wire_type == _FIXED64:
                at += 8
            elif wire_type == _FIXED32:
                at += 4
            elif wire_type == _BYTES:
                length, payload = self._shortest(at, end)
                at = payload + length
            else:
                raise BundleError(f"policy.onnx is malformed: wire type {wire_type} at byte {at}")
            if number == 0 or at > end:
                raise BundleError(f"policy.onnx is malformed: field {number} at byte {payload}")
            yield _Field(number, wire_type, value, payload, at)

    def _shortest(self, at: int, end: int) -> tuple[int, int]:
        """A tag or a length: 32 bits, without the zeros that some readers would cut off."""
        value, after = self._varint(at, end, _TAG_BYTES)
        if value >= 1 << 32 or (after - at > 1 and self._data[after - 1] == 0):
            raise BundleError(f"policy.onnx is malformed: number out of form at byte {at}")
        return value, after

    def _varint(self, at: int, end: int, most: int) -> tuple[int, int]:
        """-> value, where it ends; it takes `most` bytes or fewer."""
        value = 0
        for shift in range(0, 7 * most, 7):
            if at >= end:
                break
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise BundleError(f"policy.onnx is malformed: unfinished number at byte {at}")


def _single(message: str, fields: list[_Field], number: int) -> _Field:
    """The one field of this number."""
    found = [field for field in fields if field.number == number]
    if len(found) != 1:
        raise BundleError(
            f"policy.onnx is malformed: {message}: field {number} stands {len(found)} times"
        )
    return found[0]


def _check_inside(field: _Field) -> None:
    """Of a tensor: are its values in the model?"""
    # Location 0 is "inside the model"; anything else, present or to come, is not.
    elsewhere = field.number == _TENSOR_DATA_LOCATION and (
        field.wire_type != _VARINT or field.value != 0
    )
    if field.number == _TENSOR_EXTERNAL_DATA or elsewhere:
        raise BundleError("policy.onnx keeps tensors in other files (external data)")


def _check_size_is_constant(node: Node, weights: dict[str, tuple[int, ...]]) -> None:
    if node.operator not in SIZED:
        return
    for name in node.inputs[1:]:
        if name and (name not in weights or math.prod(weights[name]) > MAX_RANK):
            raise BundleError(
                f"policy.onnx: {node.operator}: how large its output is is no constant of the "
                "file: the bundle was not exported by this project"
            )


def _message(number: int, content: bytes) -> bytes:
    return _written(number << 3 | _BYTES) + _written(len(content)) + content


def _written(value: int) -> bytes:
    """As protocol buffers write numbers: 7 bits a byte, the lowest first."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([*(0x80 | group for group in groups[:-1]), groups[-1]])
