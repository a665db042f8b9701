"""Is every damaged bundle refused, in one line and quickly?

    python benchmarks/corrupted.py [bundle] [count]

Makes `count` bundles (1,000) out of a good one, each damaged in another place: bits flipped, files
cut off, files of another policy in their place, impossible sizes and names in a policy.json whose
hashes are right, links and paths that lead elsewhere, files that are too large. Reports how many
were refused, the slowest, and how often ONNX Runtime was opened.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.policy_files import PRETRAINED
from visuomotor.runtime import bundle as bundle_module
from visuomotor.runtime.bundle import BundleError, load_bundle
from visuomotor.runtime.files import GOLDEN, MANIFEST, MAX_FILE_BYTES, MODEL, seal_manifest

Files = dict[str, bytes]
HUGE = [2**31, 2**63, -1, 0, 10**30, 1e308, "64", None, [], {}, True]
PATHS = ["../policy.onnx", "/etc/passwd", "policy.onnx/../../x", "", ".", "a\x00b", "C:\\x", "~"]


def sealed(files: Files, change: Callable[[dict[str, Any]], None]) -> Files:
    """With a changed policy.json whose hashes are right."""
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    others = {name: files[name] for name in manifest["files"] if name in files}
    listed = manifest.pop("files")
    content = seal_manifest(manifest, others)
    if set(listed) != set(others):  # names that are no files of ours
        content = seal_manifest(
            {**manifest}, {**others, **{n: b"" for n in listed if n not in others}}
        )
    return files | {MANIFEST: content}


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


def main(name: str, count: int) -> int:
    source = PRETRAINED / name if (PRETRAINED / name).is_dir() else Path(name)
    good = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    another = next(p for p in sorted(PRETRAINED.glob("*/policy.json")) if p.parent != source)
    other = {path.name: path.read_bytes() for path in another.parent.iterdir()}
    rng = np.random.default_rng(0)
    opened = Counter[str]()
    original = bundle_module._open_session

    def counted(model: bytes) -> Any:
        opened["sessions"] += 1
        return original(model)

    bundle_module._open_session = counted
    kinds: dict[str, Callable[[Files], Files]] = {
        "bit flipped": lambda f: flipped(f, rng),
        "cut off": lambda f: cut(f, rng),
        "file of another policy": lambda f: swapped(f, rng, other),
        "impossible size, right hashes": lambda f: resized(f, rng),
        "name that leads elsewhere": lambda f: renamed(f, rng),
        "link": lambda f: f,
        "too large": lambda f: f,
    }
    refused, slowest, longest = Counter[str](), 0.0, 0
    made = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            kind = list(kinds)[index % len(kinds)]
            made[kind] += 1
            files = kinds[kind](good)
            path = Path(folder) / str(index)
            path.mkdir()
            for file, content in files.items():
                (path / file).write_bytes(content)
            target = path / [MODEL, GOLDEN, MANIFEST][rng.integers(3)]
            if kind == "link":
                target.unlink()
                target.symlink_to([source / target.name, "/etc/passwd", "/dev/zero"][index % 3])
            elif kind == "too large":
                with open(target, "r+b") as file:
                    file.truncate(MAX_FILE_BYTES + 1 + index)
            begin = time.perf_counter()
            try:
                load_bundle(path)
            except BundleError as error:
                refused[kind] += 1
                longest = max(longest, str(error).count("\n") + 1)
            slowest = max(slowest, time.perf_counter() - begin)
            for file in path.iterdir():
                file.unlink()
    for kind in kinds:
        print(f"{kind}: {refused[kind]} of {made[kind]} refused")
    print(
        f"{sum(refused.values())} of {count} refused, in at most {longest} line, the slowest in "
        f"{1000 * slowest:.0f} ms; ONNX Runtime was opened {opened['sessions']} times"
    )
    return 0 if sum(refused.values()) == count else 1


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(
        main(arguments[0] if arguments else "lifting", int((arguments + ["", "1000"])[1] or 1000))
    )
