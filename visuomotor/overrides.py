"""`key=value` on the command line and YAML files -> a frozen dataclass, and back.

Works for any frozen dataclass whose fields are numbers, booleans, strings, `X | None`, tuples of
these, or further dataclasses (groups, written with dots: `ppo.gamma=0.98`). Types come from the
annotations, descriptions from the comments behind and above the fields. A class may define
`validate(self) -> None`, which raises UserError; the settings of a run are checked by `limits`.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from visuomotor.errors import UserError
from visuomotor.files import write_atomic
from visuomotor.limits import describe_limit, show, validate

T = TypeVar("T")

HELP_WORDS = ("help", "-h", "-help", "--help")
MAX_SUGGESTIONS = 3
CUTOFF = 0.6  # similarity (difflib) from which a key counts as a misspelling of another

_TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}
# A line of a dataclass: a field's name and the comment behind it, or a comment alone.
_FIELD = re.compile(r"^\s+(\w+)\s*:[^#]*(?:#\s*(.+))?$")
_COMMENT = re.compile(r"^\s+#\s*(.+)$")
# Where a sentence ends; "..." leads over to the next field.
_SENTENCE_END = re.compile(r"(?<=[^.]\.)\s+")


# --- command line -------------------------------------------------------------------------------


def parse_overrides(argv: Sequence[str], cls: type[T]) -> T:
    """`cls` with its defaults replaced by `key=value` arguments, and checked.

    argv: without the program's name. With one of HELP_WORDS the usage is printed and SystemExit(0)
    raised. Raises UserError for a missing '=', an unknown or repeated key, a value of the wrong
    type, and a value that is out of range.
    """
    if any(argument in HELP_WORDS for argument in argv):
        print(usage(cls))
        raise SystemExit(0)
    hints = leaf_types(cls)
    values: dict[str, Any] = {}
    for argument in argv:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(_not_an_assignment(argument, hints))
        if key not in hints:
            raise UserError(_unknown(key, hints))
        if key in values:
            raise UserError(f"{key} is given twice; give each key once")
        values[key] = _from_text(text, hints[key], key)
    return _build(cls, values)


def usage(cls: type[Any]) -> str:
    """Every key with its default, type, valid range and description, one a line."""
    hints = leaf_types(cls)
    defaults = leaf_values(cls())
    comments = _comments(cls)
    name, story = _program()
    lines = [story, ""] if story else []
    lines += [f"usage: {name} [key=value ...]", ""]
    for key, hint in hints.items():
        known = [_type_name(hint), describe_limit(cls, key)]
        valid = ", ".join(part for part in known if part)
        about = f"  # {comments[key]}" if key in comments else ""
        lines.append(f"  {key}={show(defaults[key])}  ({valid}){about}")
    return "\n".join(lines)


def _program() -> tuple[str, str]:
    """How the running command is called, and the first paragraph of its documentation."""
    module = sys.modules.get("__main__")
    spec = getattr(module, "__spec__", None)
    if spec is None or not spec.name.startswith("visuomotor."):
        return "python -m visuomotor.<command>", ""
    story = (module.__doc__ or "").strip().split("\n\n")[0]
    return f"python -m {spec.name}", story


# --- YAML ---------------------------------------------------------------------------------------


def to_yaml(config: Any) -> str:
    """Every setting of a dataclass, resolved; floats round-trip exactly."""
    return yaml.dump(_plain(config), Dumper=_Dumper, sort_keys=False, default_flow_style=False)


def save_yaml(config: Any, path: Path | str) -> None:
    """Writes `to_yaml(config)` so that the file is there whole or not at all."""
    write_atomic(path, to_yaml(config).encode())


def load_yaml(path: Path | str, cls: type[T]) -> T:
    """A dataclass from a YAML file; settings that the file leaves out keep their defaults, or are
    what the class says of them in `ABSENT`, by dotted key.

    Raises UserError naming the file, for the reasons of `parse_overrides` and for a file that is
    missing, no YAML mapping, or without a key that the class has in `NAMED`.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read settings from '{path}': {error}") from error
    return parse_yaml(content, path, cls)


def parse_yaml(content: bytes, path: Path | str, cls: type[T]) -> T:
    """As `load_yaml`, of a file's content; path: for messages alone."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read settings from '{path}': {error}") from error
    try:
        # A SafeLoader: it builds plain numbers, text, lists and mappings only.
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' is no valid YAML: {reason}; expected lines 'key: value'") from (
            error
        )
    try:
        hints = leaf_types(cls)
        values: dict[str, Any] = {}
        _flatten({} if loaded is None else loaded, hints, "", values)
        unnamed = [key for key in getattr(cls, "NAMED", ()) if key not in values]
        values = getattr(cls, "ABSENT", {}) | values
        values = {key: _from_object(value, hints[key], key) for key, value in values.items()}
        if unnamed:
            raise UserError(
                f"it is empty, cut short or damaged: it does not say {' or '.join(unnamed)}; put "
                "back the file as it was written"
            )
        return _build(cls, values)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error


class _Dumper(yaml.SafeDumper):
    """Groups as lines, lists in one: `prop_mass: [0.5, 2.0]`."""

    def represent_sequence(
        self, tag: str, sequence: Sequence[Any], flow_style: bool | None = None
    ) -> yaml.Node:
        return super().represent_sequence(tag, sequence, flow_style=True)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: list[Any] = []  # a list: a key may be unhashable, which super() refuses
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is given twice", key_node.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep)


def _flatten(loaded: Any, hints: Mapping[str, Any], prefix: str, into: dict[str, Any]) -> None:
    """Nested mappings -> dotted keys. Raises UserError for keys that `hints` does not hold."""
    if not isinstance(loaded, dict):
        where = prefix.rstrip(".") or "the file"
        raise UserError(
            f"{where} is {_received(loaded)}; valid: a group of keys, such as {_some_keys(hints)}"
        )
    for name, value in loaded.items():
        key = f"{prefix}{name}"
        if key in hints:
            into[key] = value
        elif any(other.startswith(f"{key}.") for other in hints):
            _flatten(value, {k: h for k, h in hints.items() if k.startswith(key)}, f"{key}.", into)
        else:
            raise UserError(_unknown(key, hints))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(map(_plain, value)) if isinstance(value, tuple) else value


# --- dataclasses as flat keys -------------------------------------------------------------------


def leaf_types(cls: type[Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every setting, in the order of the class."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= leaf_types(hint, f"{prefix}{f.name}.")
        else:
            found[f"{prefix}{f.name}"] = hint
    return found


def leaf_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every setting, in the order of the class."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            found |= leaf_values(value, f"{prefix}{f.name}.")
        else:
            found[f"{prefix}{f.name}"] = value
    return found


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    """`cls` with the values of these dotted keys, checked."""
    config: T = _replace(cls(), values)
    validate(config)
    return config


def _replace(config: Any, values: Mapping[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, dot, rest = key.partition(".")
        if dot:
            groups.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    for name, group in groups.items():
        changes[name] = _replace(getattr(config, name), group)
    return dataclasses.replace(config, **changes)


# --- values -------------------------------------------------------------------------------------


def _from_text(text: str, hint: Any, key: str) -> Any:
    """The value that a text means for a setting of type `hint`; UserError if it means none."""
    optional, inner = _unwrap(hint)
    text = text.strip()
    if optional and text.lower() in ("none", "null"):
        return None
    if text == "":
        raise UserError(f"{key}= has no value; valid: {_type_name(hint)}")
    if inner is str:
        return text
    if inner is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    number = _number(text, inner) if inner in (int, float) else None
    if number is not None:
        return number
    if typing.get_origin(inner) is tuple:
        bare = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
        # "[1, 2,]" is as good as "[1, 2]", and "[]" holds nothing.
        parts = bare.strip().removesuffix(",").split(",") if bare.strip() else []
        return _tuple(parts, inner, key, text)
    raise UserError(f"{key}={text} is not valid; valid: {_type_name(hint)}")


def _from_object(value: Any, hint: Any, key: str) -> Any:
    """As `_from_text`, for a value that YAML has read."""
    optional, inner = _unwrap(hint)
    if value is None and optional:
        return None
    if isinstance(value, str):
        # YAML 1.1 takes 5e-4 for text; what is text to YAML is read as on the command line.
        return _from_text(value, hint, key)
    if typing.get_origin(inner) is tuple and isinstance(value, list):
        return _tuple(value, inner, key, value)
    if inner is bool and isinstance(value, bool):
        return value
    if inner in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        number = _number(repr(value), inner)
        if number is not None:
            return number
    hint_quotes = " in quotes" if inner is str else ""
    raise UserError(f"{key} is {_received(value)}; valid: {_type_name(hint)}{hint_quotes}")


def _tuple(parts: Sequence[Any], hint: Any, key: str, whole: object) -> tuple[Any, ...]:
    kinds = typing.get_args(hint)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(parts)
    if len(parts) != len(kinds):
        raise UserError(f"{key}={whole} has {len(parts)} entries; valid: {_type_name(hint)}")
    return tuple(
        _from_object(part, kind, f"{key}[{i}]")
        for i, (part, kind) in enumerate(zip(parts, kinds, strict=True))
    )


def _number(text: str, kind: type) -> int | float | None:
    """`1_000`, `-3`, `1e-4`; for int also `4e6`. None where the text is no finite `kind`."""
    try:
        if kind is int and re.fullmatch(r"[+-]?\d[\d_]*", text):
            return int(text)
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    if kind is float:
        return value
    return int(value) if value.is_integer() else None


def _unwrap(hint: Any) -> tuple[bool, Any]:
    """(may be None, the type without None)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if len(kinds) == 1:
            return True, kinds[0]
    return False, hint


def _type_name(hint: Any) -> str:
    optional, inner = _unwrap(hint)
    if typing.get_origin(inner) is tuple:
        kinds = typing.get_args(inner)
        if kinds[-1] is Ellipsis:
            words = f"a list [..., ...] of {_plural(kinds[0])}"
        else:
            words = f"a list of {len(kinds)} {_plural(kinds[0])}"
    else:
        words = _TYPE_WORDS.get(inner, str(inner))
    return f"{words} or none" if optional else words


def _plural(kind: type) -> str:
    return {int: "whole numbers", float: "numbers"}.get(kind, f"{kind.__name__} values")


def _received(value: Any) -> str:
    kinds = {dict: "a group of keys", list: "a list", type(None): "empty"}
    return kinds.get(type(value), f"'{value}'")


# --- what was meant -----------------------------------------------------------------------------


def nearest_keys(key: str, keys: Sequence[str]) -> list[str]:
    """Up to MAX_SUGGESTIONS of `keys`, most similar first, judged whole and by their last part."""
    key = key.lstrip("-").lower()
    last = key.rpartition(".")[2]

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        # `gamma` means `ppo.gamma`, though the dotted key as a whole is half something else;
        # the whole still decides between groups that share a name.
        part = difflib.SequenceMatcher(None, last, other.rpartition(".")[2]).ratio()
        return max(whole, 0.9 * part + 0.1 * whole)

    scores = {other: likeness(other) for other in keys}
    near = [other for other in keys if scores[other] >= CUTOFF]
    return sorted(near, key=lambda other: -scores[other])[:MAX_SUGGESTIONS]


def _unknown(key: str, hints: Mapping[str, Any]) -> str:
    keys = list(hints)
    members = [other for other in keys if other.startswith(f"{key}.")]
    if members:
        return f"'{key}' is a group; set one of its keys: {', '.join(members)}"
    parent = key.rpartition(".")[0]
    if parent in hints:
        return f"unknown key '{key}': '{parent}' is no group; valid: {parent}=..."
    near = nearest_keys(key, keys)
    if near:
        return f"unknown key '{key}'; did you mean {' or '.join(near)}? (all keys: --help)"
    return f"unknown key '{key}'; valid keys: {_some_keys(hints)} (all keys: --help)"


def _some_keys(hints: Mapping[str, Any]) -> str:
    tops = dict.fromkeys(key if "." not in key else f"{key.partition('.')[0]}.*" for key in hints)
    return ", ".join(tops if len(tops) > 1 else hints)


def _not_an_assignment(argument: str, hints: Mapping[str, Any]) -> str:
    near = nearest_keys(argument, list(hints))
    example = f"{near[0]}=..." if near else f"{next(iter(hints))}=..."
    return f"'{argument}' is no key=value; write for example {example} (all keys: --help)"


def _comments(cls: type[Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> the comment behind the field, then the first sentence of the one above it;
    empty where no source is at hand."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return {}
    hints = typing.get_type_hints(cls)
    found: dict[str, str] = {}
    above: list[str] = []  # lines of the comment that ends just above
    for line in source.splitlines():
        if comment := _COMMENT.match(line):
            above.append(comment[1])
            continue
        field = _FIELD.match(line)
        if field is not None and field[1] in hints:
            first = _SENTENCE_END.split(" ".join(above), maxsplit=1)[0]
            about = [text for text in (field[2], first) if text]
            if about:
                found[f"{prefix}{field[1]}"] = ". ".join(about)
        above = []
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= _comments(hint, f"{prefix}{name}.")
    return found
