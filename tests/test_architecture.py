"""Arrows between the modules point one way (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "visuomotor"

NETWORKS = (
    "aux_tasks",
    "gail_reward",
    "hand_position",
    "networks",
    "pixel_actor",
    "state_critic",
    "state_teacher",
)
# The simulated worlds, and what they are randomized with.
WORLD = ("envs", "factors", "image_noise", "randomization", "vision_import")
# What wires environments and learner together: training, its phases, and the commands.
WIRING = (
    "benchmark",
    "demonstrate",
    "distillation",
    "evaluate",
    "evaluation",
    "export",
    "reinforcement",
    "replay",
    "train",
)
# Named by a rule, but written later.
NOT_YET: set[str] = set()


@dataclass(frozen=True)
class Rule:
    """What the modules under `subjects` may import besides the standard library and themselves.

    Args:
      subjects: modules of the package, or packages with all that is in them.
      package: modules of the package that they may import.
      foreign: other distributions' modules that they may import; None: any.
      never: modules that stay out even when a wider name is in `foreign`.
    """

    subjects: tuple[str, ...]
    package: tuple[str, ...]
    foreign: tuple[str, ...] | None
    never: tuple[str, ...] = ()


RULES = {
    "settings and errors know nothing": Rule(("config", "errors"), (), ()),
    "rows know only torch": Rule(("rows",), (), ("torch",)),
    "environments know no learner": Rule(WORLD, ("cache", "config", "errors", "rows"), None),
    "networks import only torch": Rule(NETWORKS, ("errors",), ("torch",)),
    "rollout and ppo know no environment": Rule(
        ("rollout", "ppo"), (*NETWORKS, "config", "errors", "rows"), ("torch", "numpy")
    ),
    # safetensors.torch would bring torch to the arm.
    "the arm's side needs no torch and no simulator": Rule(
        ("runtime",),
        (),
        ("numpy", "onnxruntime", "safetensors", "cv2", "cyclonedds"),
        ("safetensors.torch",),
    ),
    "who deploys needs no torch and no simulator": Rule(
        ("deploy", "deployment"),
        ("cli", "config", "errors", "files", "limits", "overrides", "runtime"),
        ("numpy",),
    ),
}


def is_under(name: str, parents: Iterable[str]) -> bool:
    """Whether a dotted name is one of the modules, or lies inside one."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def imported_names(source: str, module: str, is_package: bool) -> set[str]:
    """Absolute dotted names that a source imports, wherever in it: `from a import b` is 'a.b'.

    Relative imports are resolved against `module`; a literal `import_module("a")` counts.
    """
    package = module if is_package else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level > 0:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join((*parents, base) if base else parents)
            names |= {base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            func = node.func
            called = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            literals = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            if called == "import_module":
                names |= {value for value in literals if isinstance(value, str)}
    return names


def breaches(rule: Rule, sources: Mapping[str, str]) -> list[str]:
    """One line for each import that the rule forbids. sources: module name -> text."""
    own = tuple(f"{PACKAGE}.{name}" for name in rule.subjects)
    allowed = (*own, *(f"{PACKAGE}.{name}" for name in rule.package))
    found = []
    for module, source in sources.items():
        if not is_under(module, own):
            continue
        is_package = any(other.startswith(module + ".") for other in sources)
        for name in sorted(imported_names(source, module, is_package)):
            if is_under(name, [PACKAGE]):
                lawful = name in (PACKAGE, f"{PACKAGE}.__version__") or is_under(name, allowed)
            elif name.split(".")[0] in sys.stdlib_module_names:
                lawful = True
            else:
                lawful = rule.foreign is None or is_under(name, rule.foreign)
            if not lawful or is_under(name, rule.never):
                found.append(f"{module} imports {name}")
    return found


def wirings(sources: Mapping[str, str]) -> set[str]:
    """Modules that import environments and PPO both."""
    both = set()
    for module, source in sources.items():
        is_package = any(other.startswith(module + ".") for other in sources)
        names = imported_names(source, module, is_package)
        sides = (f"{PACKAGE}.envs", f"{PACKAGE}.ppo")
        if all(any(is_under(name, [side]) for name in names) for side in sides):
            both.add(module)
    return both


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Every module of the package: dotted name -> text."""
    modules = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return modules


@pytest.mark.parametrize("name", RULES)
def test_arrows_point_one_way(name: str, sources: dict[str, str]) -> None:
    rule = RULES[name]
    if not any(is_under(module, [f"{PACKAGE}.{s}" for s in rule.subjects]) for module in sources):
        pytest.skip(f"none of {', '.join(rule.subjects)} is written yet")
    assert breaches(rule, sources) == []


def test_only_training_and_the_commands_wire_environments_to_ppo(sources: dict[str, str]) -> None:
    assert wirings(sources) <= {f"{PACKAGE}.{name}" for name in WIRING}


def test_the_package_itself_imports_nothing_but_os(sources: dict[str, str]) -> None:
    # Every import of a module runs it first, so an import here would reach the arm's side too.
    assert imported_names(sources[PACKAGE], PACKAGE, is_package=True) == {"os"}


def test_every_module_is_named_on_the_page(sources: dict[str, str]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"[\w.]+\.py", page))
    packages = {module for module in sources if any(o.startswith(f"{module}.") for o in sources)}
    missing = [m for m in sources if m not in packages and f"{m.split('.')[-1]}.py" not in named]
    assert missing == []
    folders = {f"{m.split('.')[-1]}/" for m in packages} - {f"{PACKAGE}/"}
    assert [folder for folder in sorted(folders) if folder not in page] == []


def test_rules_name_modules_that_exist(sources: dict[str, str]) -> None:
    named = {name for rule in RULES.values() for name in (*rule.subjects, *rule.package)}
    missing = {name for name in named | set(WIRING) if f"{PACKAGE}.{name}" not in sources}
    assert missing == NOT_YET


@pytest.mark.parametrize(
    ("rule", "module", "source", "named"),
    [
        ("settings and errors know nothing", "config", "import torch", "torch"),
        (
            "environments know no learner",
            "envs.tasks.lifting",
            "from visuomotor.ppo import PPO",
            "visuomotor.ppo.PPO",
        ),
        (
            "environments know no learner",
            "envs.camera",
            "from ..rollout import RolloutBuffer",
            "visuomotor.rollout.RolloutBuffer",
        ),
        (
            "environments know no learner",
            "envs.camera",
            "from visuomotor import pixel_actor",
            "visuomotor.pixel_actor",
        ),
        ("networks import only torch", "pixel_actor", "import numpy as np", "numpy"),
        (
            "networks import only torch",
            "gail_reward",
            "from visuomotor.envs import robot",
            "visuomotor.envs.robot",
        ),
        (
            "rollout and ppo know no environment",
            "ppo",
            "def late():\n    from visuomotor.envs import make_env\n",
            "visuomotor.envs.make_env",
        ),
        ("rollout and ppo know no environment", "rollout", "import gymnasium.spaces", "gymnasium"),
        (
            "the arm's side needs no torch and no simulator",
            "runtime.arm",
            "import importlib\nimportlib.import_module('mujoco')",
            "mujoco",
        ),
        (
            "the arm's side needs no torch and no simulator",
            "runtime.bundle",
            "from safetensors.torch import load_file",
            "safetensors.torch.load_file",
        ),
        (
            "the arm's side needs no torch and no simulator",
            "runtime.bundle",
            "from visuomotor.config import Config",
            "visuomotor.config.Config",
        ),
    ],
)
def test_a_forbidden_import_is_found(rule: str, module: str, source: str, named: str) -> None:
    found = breaches(RULES[rule], {f"{PACKAGE}.{module}": source})
    assert len(found) == 1
    assert found[0].startswith(f"{PACKAGE}.{module} imports {named}")


def test_lawful_imports_are_no_breach() -> None:
    sources = {
        "visuomotor.envs": "from visuomotor.envs.environment import VisuomotorEnv",
        "visuomotor.envs.environment": "import mujoco\nfrom . import scene\nfrom .. import config",
        "visuomotor.ppo": "import math\nfrom torch import nn\nfrom visuomotor import __version__\n"
        "from visuomotor.rollout import Batch",
        "visuomotor.runtime.bundle": "import json\nfrom safetensors.numpy import load_file",
    }
    found = [line for rule in RULES.values() for line in breaches(rule, sources)]
    assert found == []


def test_a_module_that_wires_is_found() -> None:
    sources = {
        "visuomotor.helper": "from visuomotor import ppo\nfrom visuomotor.envs import make_env",
        "visuomotor.envs.task": "import torch",
        "visuomotor.policies": "from visuomotor.ppo import PPO",
    }
    assert wirings(sources) == {"visuomotor.helper"}
