"""The files of a bundle: reading them safely, and the hashes that hold them together.

A bundle is a folder: `policy.onnx` (one control step of batch 1), `policy.json` (what its inputs
and outputs mean, and the SHA-256 of every file) and `golden.safetensors` (recorded episodes with
the outputs that training's own framework gives).

The hashes find accidents and mixed-up files. They do not prove who made the bundle: whoever can
write a bundle can also write its hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from visuomotor.runtime.errors import BundleError

FORMAT = "visuomotor-bundle"
SCHEMA_VERSION = 1
MANIFEST = "policy.json"
MODEL = "policy.onnx"
GOLDEN = "golden.safetensors"
WEIGHTS = "weights.safetensors"
CONFIG = "config.yaml"
EVALUATION = "evaluation.json"
CURVE = "curve.csv"
REQUIRED_FILES = (MODEL, GOLDEN)
OPTIONAL_FILES = (WEIGHTS, CONFIG, EVALUATION, CURVE)

MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 64 << 20  # the policies of this package take about 1 MB

_NO_DIGEST = "0" * 64  # stands where the digest of policy.json will, while it is taken
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_bundle(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """-> policy.json and the contents of every file that it lists, hashes verified.

    Each file is read once, so that what is verified is what is used.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"{folder} is no folder, so no bundle")
    manifest = parse_manifest(_read_file(folder, MANIFEST, MAX_MANIFEST_BYTES))
    entries = get_entry(manifest, "files", dict)
    for name in REQUIRED_FILES:
        if name not in entries:
            raise BundleError(f"{MANIFEST}: files does not list {name}")
    files = {}
    for name in entries:
        # A fixed list: no name that a file brings along ever becomes a path.
        if name not in REQUIRED_FILES + OPTIONAL_FILES:
            raise BundleError(f"{MANIFEST}: files lists {name!r}, which is no file of a bundle")
        expected = get_entry(entries, name, str, label="files")
        content = _read_file(folder, name, MAX_FILE_BYTES)
        received = hashlib.sha256(content).hexdigest()
        if received != expected:
            raise BundleError(
                f"{folder / name} is not the file that {MANIFEST} describes: "
                f"sha256 {received[:12]}..., expected {expected[:12]}..."
            )
        files[name] = content
    return manifest, files


def seal_manifest(manifest: dict[str, Any], files: dict[str, bytes]) -> bytes:
    """-> the bytes of policy.json, with the hash of every file and of itself.

    Its own hash is taken with zeros in the hash's place; a manifest that was read may be sealed
    again. Raises ValueError on NaN or infinity.
    """
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    sealed = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "self_sha256": _NO_DIGEST}
    facts = {key: value for key, value in manifest.items() if key not in sealed}
    blank = json.dumps({**sealed, **facts, "files": hashes}, indent=2, allow_nan=False) + "\n"
    digest = hashlib.sha256(blank.encode()).hexdigest()
    return blank.replace(_NO_DIGEST, digest, 1).encode()


def parse_manifest(content: bytes) -> dict[str, Any]:
    """The inverse of `seal_manifest`: strict JSON (no NaN, no key twice), known schema, own hash.

    Raises BundleError.
    """
    try:
        manifest = json.loads(
            content.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is no strict JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f'{MANIFEST}: expected an object with "format": "{FORMAT}"')
    version = manifest.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST}: schema version {version!r} is unknown here, {SCHEMA_VERSION} is known; "
            "export the policy again, or use a matching visuomotor"
        )
    digest = get_entry(manifest, "self_sha256", str)
    if not _HEX_DIGEST.fullmatch(digest) or content.count(digest.encode()) != 1:
        raise BundleError(f"{MANIFEST}: self_sha256 is no digest of this file")
    blank = content.replace(digest.encode(), _NO_DIGEST.encode())
    if hashlib.sha256(blank).hexdigest() != digest:
        raise BundleError(f"{MANIFEST} was changed after it was written: its own hash differs")
    return manifest


def _read_file(folder: Path, name: str, limit: int) -> bytes:
    """A regular file of at most `limit` bytes: no link, no device, no pipe."""
    path = folder / name
    # O_NONBLOCK: opening a pipe must not wait for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        if path.is_symlink():
            raise BundleError(f"{path} is a link; a bundle holds plain files")
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path} is no plain file")
            if status.st_size > limit:
                raise BundleError(f"{path} has {status.st_size} bytes, at most {limit} are allowed")
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise BundleError(f"{path} grew beyond {limit} bytes while it was read")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def get_entry(parent: dict[str, Any], key: str, kind: type, label: str = "") -> Any:
    """parent[key], which must be a `kind`."""
    where = f"{label}.{key}" if label else key
    if key not in parent:
        raise BundleError(f"{MANIFEST}: {where} is missing")
    value = parent[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(
            f"{MANIFEST}: {where}: expected {kind.__name__}, received {type(value).__name__}"
        )
    return value
