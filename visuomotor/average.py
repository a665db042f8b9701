"""Averages the weights of policies: `python -m visuomotor.average policies=a,b out=runs/mean`.

For policies that come from one another, or from one ancestor: their mean can do better than any of
them ("model soups", Wortsman et al. 2022; clearing_blocks in docs/findings.md).
Of policies that were trained apart the mean is no policy. Writes a run folder, to be evaluated,
exported, or trained on from (`start_from=`); which it does better by, `evaluate` has to say.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from visuomotor.checkpoint import save_checkpoint
from visuomotor.cli import run_command
from visuomotor.errors import UserError
from visuomotor.overrides import parse_overrides
from visuomotor.policy_files import load_policy
from visuomotor.predecessors import check_alike, told
from visuomotor.run_folder import RunFolder, refuse_occupied


@dataclass(frozen=True)
class AverageConfig:
    policies: str = ""  # run folders, bundles with weights or shipped names, with commas between
    out: str = ""  # run folder to write


def mean_weights(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of networks of one shape, entry by entry; each keeps its type."""
    first = weights[0]
    stacked = {name: torch.stack([each[name].double() for each in weights]) for name in first}
    return {name: values.mean(dim=0).to(first[name].dtype) for name, values in stacked.items()}


def average(argv: list[str]) -> int:
    options = parse_overrides(argv, AverageConfig)
    names = [name.strip() for name in options.policies.split(",") if name.strip()]
    if len(names) < 2 or len(names) != len(options.policies.split(",")):
        raise UserError(
            f"policies={options.policies} names {len(names)}; give at least two, with one comma "
            "between: policies=stacking,runs/mine"
        )
    if not options.out:
        raise UserError("out= is missing; name the run folder to write: out=runs/mean")
    refuse_occupied(options.out)
    loaded = [load_policy(name) for name in names]
    actor, config, provenance = loaded[-1]
    wanted = actor.aux_heads is not None
    for name, (other, its, _) in zip(names, loaded, strict=True):
        heads = other.aux_heads is not None
        check_alike(f"policies: {name}", heads, its, wanted, config, names[-1])
    weights = mean_weights([one.state_dict() for one, _, _ in loaded])
    out = Path(options.out)
    with RunFolder.create(out, replace(config, out=options.out)) as folder:
        parts = [
            told(name, its, facts, config)
            for name, (_, its, facts) in zip(names, loaded, strict=True)
        ]
        state = {"phase": "average", "policy": {"actor": weights}, "mean_of": parts}
        save_checkpoint(folder.checkpoints, int(provenance.get("env_steps") or 0), state)
    print(
        f"the mean of {', '.join(names)} is in {out}; judge it: "
        f"python -m visuomotor.evaluate policy={out}"
    )
    return 0


def main() -> None:
    sys.exit(run_command(average, sys.argv[1:]))


if __name__ == "__main__":
    main()
