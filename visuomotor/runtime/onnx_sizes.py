"""How much a policy's graph holds and computes, judged before any of it runs.

Operators that are harmless one by one make much of little when they are chained: a row times a
column is a square. What is allowed grows with the image and with the file, as a policy does, and
knows nothing of ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from visuomotor.runtime.errors import BundleError
from visuomotor.runtime.onnx_file import MAX_RANK, Graph

# Of what a step makes, in numbers, and of its multiplications. The shipped policies, of 64x64
# pixels and 1 to 2 MB, make up to 0.7 million numbers with 8 million multiplications; an untrained
# one of 512x512 pixels makes 26 numbers with 1,200 multiplications a pixel.
NUMBERS_PER_PIXEL, NUMBERS_PER_BYTE = 64, 2
MULTIPLICATIONS_PER_PIXEL, MULTIPLICATIONS_PER_BYTE = 4096, 8

Shape = Sequence[int]


def check_sizes(
    graph: Graph, shapes: Mapping[str, Sequence[object]], pixels: int, model_bytes: int
) -> None:
    """Raises BundleError if a step makes or multiplies more numbers than a policy has use for, or
    if somewhere it cannot be told how many.

    Args:
      shapes: of every tensor that is no weight; what is no int is not known.
      pixels: of the image.
      model_bytes: length of the file.
    """
    known = {name: _known(name, shape) for name, shape in shapes.items()} | graph.weights
    made = multiplied = 0
    for node in graph.nodes:
        inputs = [known[name] for name in node.inputs if name]
        outputs = [known[name] for name in node.outputs if name]
        made += sum(map(math.prod, outputs))
        multiplied += multiplications(node.operator, inputs, outputs)
    for what, received, allowed in (
        ("numbers", made, NUMBERS_PER_PIXEL * pixels + NUMBERS_PER_BYTE * model_bytes),
        (
            "multiplications",
            multiplied,
            MULTIPLICATIONS_PER_PIXEL * pixels + MULTIPLICATIONS_PER_BYTE * model_bytes,
        ),
    ):
        if received > allowed:
            raise BundleError(
                f"policy.onnx asks for {received:.3g} {what} a step, of a policy of this size at "
                f"most {allowed:.3g} are expected: the bundle was not exported by this project"
            )


def multiplications(operator: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Of one node, or more than it does."""
    made = sum(map(math.prod, outputs))
    if operator == "Conv":
        return made * math.prod(inputs[1][1:])
    if operator in ("Gemm", "MatMul"):
        return made * max(inputs[0], default=1)
    if operator == "LSTM":
        steps, batch = inputs[0][:2]
        return steps * batch * sum(math.prod(weight) for weight in inputs[1:3])
    return made + sum(map(math.prod, inputs))


def _known(name: str, shape: Sequence[object]) -> tuple[int, ...]:
    sizes = tuple(size for size in shape if isinstance(size, int) and size >= 0)
    if len(sizes) != len(shape) or len(sizes) > MAX_RANK:
        raise BundleError(
            f"policy.onnx: the shape of {name[:40]!r} is {list(shape)[: MAX_RANK + 1]}, expected "
            f"up to {MAX_RANK} sizes that are constants of the file"
        )
    return sizes
