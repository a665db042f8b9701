"""torchvision's transforms, also beside a CPU-only torch.

PyPI's torchvision is compiled against the CUDA build of torch. Beside a CPU-only torch its
extension cannot load, but its meta registrations still ask for the schemas of two operators, and
the import fails with "operator torchvision::nms does not exist". Declaring the two schemas first is
enough for everything that needs no compiled operator, which is all that is used here. Where the
extension does load, it has defined them itself and the declaration is left out.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # let the import below report what is missing
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:  # built for another torch
            return False
        return True
    return False


if not _extension_loads():
    _library = torch.library.Library("torchvision", "DEF")
    for _schema in _SCHEMAS:
        _library.define(_schema)

from torchvision.transforms.v2 import functional as functional  # noqa: E402

__all__ = ["functional"]
