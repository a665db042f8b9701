"""Looks into a serialized ONNX model before ONNX Runtime may: is everything it needs inside it?

ONNX lets a tensor name a file to read its values from, and ONNX Runtime would follow that name.
The check walks the protocol buffer itself, because the arm's side does not install `onnx`. Field
numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3), wire
types those of https://protobuf.dev/programming-guides/encoding.

Other readers take liberties: ONNX Runtime's cuts a tag to 32 bits and skips what it does not know.
So that it can see nothing that was not seen here, only what a writer of ONNX writes is accepted:
numbers in their shortest form, and fields that are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from visuomotor.runtime.errors import BundleError

# Messages that can hold a tensor: {message: {field number: message in it}}.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse_tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse_tensor",
        23: "sparse_tensor",
    },
    "sparse_tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
# All fields of these messages. One that is not known here may be known to ONNX Runtime.
_KNOWN: dict[str, frozenset[int]] = {
    "model": frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}),
    "training": frozenset({1, 2, 3, 4}),
    "function": frozenset({1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}),
    "graph": frozenset({1, 2, 5, 10, 11, 12, 13, 14, 15, 16}),
    "node": frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}),
    "attribute": frozenset({*range(1, 12), 13, 14, 15, 20, 21, 22, 23}),
    "sparse_tensor": frozenset({1, 2, 3}),
    "tensor": frozenset({*range(1, 15), 16}),
}
_NODE_DOMAIN = 7
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_STANDARD_DOMAINS = (b"", b"ai.onnx")  # every other one is code of somebody's own

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 24  # nested messages; a policy's graph needs 5
MAX_FIELDS = 200_000  # a policy's graph has a few thousand
_TAG_BYTES = 5  # 32 bits, in groups of 7; a length has 31
_VALUE_BYTES = 10  # 64 bits


class _Field(NamedTuple):
    number: int
    wire_type: int
    value: int  # of a varint
    begin: int  # of the payload
    end: int


def check_self_contained(model: bytes) -> None:
    """Raises BundleError if the model refers to other files or to non-standard operators, or is
    no protocol buffer that every reader understands alike."""
    _Walk(model).visit("model", 0, len(model), 0)


class _Walk:
    def __init__(self, data: bytes):
        self._data = data
        self._seen = 0

    def visit(self, message: str, begin: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise BundleError(f"policy.onnx nests deeper than {MAX_DEPTH} messages")
        children = _CHILDREN[message]
        # A field that occurs twice is merged by ONNX Runtime: each occurrence is looked into.
        for field in self._fields(begin, end):
            if field.number not in _KNOWN[message]:
                raise BundleError(f"policy.onnx: {message}: unknown field {field.number}")
            if message == "tensor":
                _check_tensor(field)
            elif message == "node" and field.number == _NODE_DOMAIN:
                domain = self._data[field.begin : field.end]
                if field.wire_type != _BYTES or domain not in _STANDARD_DOMAINS:
                    raise BundleError(f"policy.onnx uses operators of the domain {domain[:40]!r}")
            elif field.number in children:
                if field.wire_type != _BYTES:
                    raise BundleError(
                        f"policy.onnx is malformed: {message}: field {field.number} has wire type "
                        f"{field.wire_type}"
                    )
                self.visit(children[field.number], field.begin, field.end, depth + 1)

    def _fields(self, begin: int, end: int) -> Iterator[_Field]:
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


def _check_tensor(field: _Field) -> None:
    # Location 0 is "inside the model"; anything else, present or to come, is not.
    elsewhere = field.number == _TENSOR_DATA_LOCATION and (
        field.wire_type != _VARINT or field.value != 0
    )
    if field.number == _TENSOR_EXTERNAL_DATA or elsewhere:
        raise BundleError("policy.onnx keeps tensors in other files (external data)")
