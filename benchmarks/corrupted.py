"""Is every damaged bundle refused, in one line, quickly, and without running anything of it?

    python benchmarks/corrupted.py [bundle] [count]

Makes `count` bundles (1,000) out of a good one, each damaged in another place: bits flipped, files
cut off, files of another policy in their place, impossible sizes in any file under right hashes,
values that lie in another file, said openly or so that a less careful reader skips it, links and
names that lead elsewhere, files that are too large. Reports for each kind how many were refused,
and how often ONNX Runtime was given a model or ran one. The exit code is 1 if one was not refused,
told more than a line, took LONGEST, was run, or reached ONNX Runtime for another reason than sizes
in the model itself.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from visuomotor.policy_files import PRETRAINED
from visuomotor.runtime import bundle as bundle_module
from visuomotor.runtime.bundle import Bundle, BundleError, load_bundle
from visuomotor.runtime.files import GOLDEN, MANIFEST, MAX_FILE_BYTES, MODEL, seal_manifest

LONGEST = 2.0  # s that a refusal may take
Files = dict[str, bytes]
HUGE = [2**31, 2**63, -1, 0, 10**30, 1e308, "64", None, [], {}, True]
PATHS = ["../policy.onnx", "/etc/passwd", "policy.onnx/../../x", "", ".", "a\x00b", "C:\\x", "~"]
SIDES = [2**31, 2**40, 2**62, -1]  # of a tensor
INITIALIZER = 5 << 3 | 2  # the tag of a weight in a graph
TAGS = [  # ways to write it
    bytes([INITIALIZER]),
    bytes([INITIALIZER | 0x80, 0]),
    bytes([INITIALIZER | 0x80, 0x80, 0x80, 0x80, 0x10]),  # and bit 32
    bytes([INITIALIZER | 0x80, *[0x80] * 8, 0x01]),  # and bit 63
]
IN_MODEL = "impossible tensor in the model, right hashes"


@dataclass
class Tally:
    """Of the bundles of one kind."""

    made: int = 0
    refused: int = 0
    one_line: int = 0
    opened: int = 0  # models that ONNX Runtime was given
    ran: int = 0  # steps that it took
    slowest: float = 0.0  # s

    def good(self, kind: str) -> bool:
        told = self.refused == self.one_line == self.made and self.slowest < LONGEST
        return told and self.ran == 0 and (self.opened == 0 or kind == IN_MODEL)


def sealed(files: Files, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> Files:
    """With a changed policy.json, and hashes that are right."""
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    listed = manifest.pop("files")
    # Names that are no files of ours get a hash, too.
    return files | {MANIFEST: seal_manifest(manifest, {n: files.get(n, b"") for n in listed})}


def flipped(files: Files, rng: np.random.Generator) -> Files:
    name = sorted(files)[rng.integers(len(files))]
    content = bytearray(files[name])
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    return files | {name: bytes(content)}


def cut(files: Files, rng: np.random.Generator) -> Files:
    name = sorted(files)[rng.integers(len(files))]
    return files | {name: files[name][: rng.integers(len(files[name]))]}


def swapped(files: Files, rng: np.random.Generator, other: Files) -> Files:
    name = [MODEL, GOLDEN, MANIFEST][rng.integers(3)]
    return files | {name: other[name]}


def resized(files: Files, rng: np.random.Generator) -> Files:
    places = [
        ("camera", "height"),
        ("camera", "width"),
        ("proprio", "size"),
        ("recurrent", "shape"),
        ("joints", "velocity_limits"),
        ("joints", "names"),
        ("control", "rate_hz"),
    ]
    group, key = places[rng.integers(len(places))]
    value = HUGE[rng.integers(len(HUGE))]

    def change(manifest: dict[str, Any]) -> None:
        if key == "shape":
            manifest[group][key] = [1, value]
        elif isinstance(manifest[group][key], list):
            manifest[group][key] = [value] * len(manifest[group][key])
        else:
            manifest[group][key] = value

    return sealed(files, change)


def renamed(files: Files, rng: np.random.Generator) -> Files:
    path = PATHS[rng.integers(len(PATHS))]
    return sealed(files, lambda manifest: manifest["files"].update({path: "0" * 64}))


def resized_record(files: Files, rng: np.random.Generator) -> Files:
    """The golden episodes' own header."""
    content = files[GOLDEN]
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    name = sorted(header)[rng.integers(len(header))]
    header[name]["shape"][0] = SIDES[rng.integers(len(SIDES))]
    told = json.dumps(header).encode()
    return sealed(files | {GOLDEN: struct.pack("<Q", len(told)) + told + content[8 + length :]})


def resized_model(files: Files, rng: np.random.Generator) -> Files:
    """One of its tensors, or of its inputs."""
    model = onnx.load_from_string(files[MODEL])
    side = SIDES[rng.integers(len(SIDES))]
    tensors, inputs = model.graph.initializer, model.graph.input
    if rng.integers(2):
        dims = [tensor.dims for tensor in tensors if len(tensor.dims) > 0]
        dims[rng.integers(len(dims))][0] = side
    else:
        inputs[rng.integers(len(inputs))].type.tensor_type.shape.dim[1].dim_value = side
    return sealed(files | {MODEL: model.SerializeToString()})


def outward(files: Files, rng: np.random.Generator) -> Files:
    """A weight's values in another file. Its field in the graph is written with one of TAGS: some
    readers skip those, while ONNX Runtime reads them as they were."""
    model = onnx.load_from_string(files[MODEL])
    weights = [tensor for tensor in model.graph.initializer if tensor.raw_data]
    tensor = weights[rng.integers(len(weights))]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=MODEL)
    values = tensor.SerializeToString()
    field = TAGS[rng.integers(len(TAGS))] + varint(len(values)) + values
    model.graph.initializer.remove(tensor)
    # A second graph is merged into the first.
    content = model.SerializeToString() + b"\x3a" + varint(len(field)) + field
    return sealed(files | {MODEL: content})


def varint(value: int) -> bytes:
    """As protocol buffers write numbers: 7 bits a byte, the lowest first."""
    last = value < 0x80
    return bytes([value]) if last else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def read_files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextmanager
def counted(tally: Tally) -> Iterator[None]:
    """What ONNX Runtime is asked for meanwhile."""
    open_session, infer = bundle_module._open_session, Bundle.infer

    def opening(model: bytes, **settings: bool) -> Any:
        tally.opened += 1
        return open_session(model, **settings)

    def inferring(self: Bundle, *inputs: Any) -> Any:
        tally.ran += 1
        return infer(self, *inputs)

    bundle_module._open_session, Bundle.infer = opening, inferring  # type: ignore[method-assign]
    try:
        yield
    finally:
        bundle_module._open_session = open_session
        Bundle.infer = infer  # type: ignore[method-assign]


def refuse(source: Path, other: Path, count: int, folder: Path) -> dict[str, Tally]:
    """Damages `source` in `count` ways, with files of the bundle `other`; -> kind to its tally."""
    good, others = read_files(source), read_files(other)
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable[[Files], Files]] = {
        "bit flipped": lambda f: flipped(f, rng),
        "cut off": lambda f: cut(f, rng),
        "file of another policy": lambda f: swapped(f, rng, others),
        "impossible size in policy.json, right hashes": lambda f: resized(f, rng),
        "impossible tensor in the record, right hashes": lambda f: resized_record(f, rng),
        IN_MODEL: lambda f: resized_model(f, rng),
        "values in another file, right hashes": lambda f: outward(f, rng),
        "name that leads elsewhere": lambda f: renamed(f, rng),
        "link": lambda f: f,
        "too large": lambda f: f,
    }
    tallies = {kind: Tally() for kind in kinds}
    for index in range(count):
        kind = list(kinds)[index % len(kinds)]
        path = folder / str(index)
        path.mkdir()
        for name, content in kinds[kind](good).items():
            (path / name).write_bytes(content)
        target = path / [MODEL, GOLDEN, MANIFEST][rng.integers(3)]
        if kind == "link":
            target.unlink()
            there = [(source / target.name).resolve(), "/etc/passwd", "/dev/zero"]
            target.symlink_to(there[rng.integers(len(there))])
        elif kind == "too large":
            with open(target, "r+b") as file:
                file.truncate(MAX_FILE_BYTES + 1 + index)
        _load(path, tallies[kind])
        for file_path in path.iterdir():
            file_path.unlink()
    return tallies


def _load(path: Path, tally: Tally) -> None:
    tally.made += 1
    begin = time.perf_counter()
    try:
        with counted(tally):
            load_bundle(path)
    except BundleError as error:
        tally.refused += 1
        tally.one_line += len(str(error).splitlines()) == 1
    except Exception as error:  # what nobody expects is no refusal
        print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
    tally.slowest = max(tally.slowest, time.perf_counter() - begin)


def main(name: str, count: int) -> int:
    source = PRETRAINED / name if (PRETRAINED / name).is_dir() else Path(name)
    other = next(
        path.parent for path in sorted(PRETRAINED.glob("*/policy.json")) if path.parent != source
    )
    with tempfile.TemporaryDirectory() as folder:
        tallies = refuse(source, other, count, Path(folder))
    good = {kind: tally.good(kind) for kind, tally in tallies.items()}
    for kind, tally in tallies.items():
        print(f"{kind}: {tally.refused} of {tally.made} refused{'' if good[kind] else ', BAD'}")
    total = tallies.values()
    print(
        f"{sum(t.refused for t in total)} of {count} refused, {sum(t.one_line for t in total)} in "
        f"one line, the slowest in {1000 * max(t.slowest for t in total):.0f} ms; ONNX Runtime was "
        f"given {sum(t.opened for t in total)} models, {tallies[IN_MODEL].opened} of them with "
        f"impossible tensors, and took {sum(t.ran for t in total)} steps"
    )
    return 0 if all(good.values()) else 1


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(
        main(arguments[0] if arguments else "lifting", int((arguments + ["", "1000"])[1] or 1000))
    )
