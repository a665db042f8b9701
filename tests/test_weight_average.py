"""The mean of a network's weights over its training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training import DISTILL, SMALL
from visuomotor.checkpoint import load_checkpoint
from visuomotor.cli import run_command
from visuomotor.distillation import Distillation
from visuomotor.evaluation import evaluate_actor
from visuomotor.reinforcement import Reinforcement
from visuomotor.train import train
from visuomotor.weight_average import WeightAverage, averaged


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))


def _at(network: _Network, value: float) -> _Network:
    with torch.no_grad():
        network.weight.fill_(value)
        network.steps += 1
    return network


def test_it_is_the_mean_of_all_at_first_and_later_of_the_newest():
    network = _Network()
    average = WeightAverage(network, updates=4)
    for value, mean in ((8.0, 8.0), (4.0, 6.0), (0.0, 4.0), (8.0, 5.0), (9.0, 6.0), (2.0, 5.0)):
        average.update(_at(network, value))
        assert average.network.weight.tolist() == pytest.approx([mean, mean])
    assert int(average.network.steps) == 6  # whole numbers have no mean
    assert network.weight.tolist() == [2.0, 2.0]  # what learns is left alone


def test_it_is_no_part_of_what_learns_and_counts_from_the_first_update_on():
    network = _Network()
    average = WeightAverage(network, updates=3)
    assert averaged(average, network) is network
    assert averaged(None, network) is network
    average.update(_at(network, 1.0))
    assert averaged(average, network) is average.network
    assert not any(p.requires_grad for p in average.network.parameters())


def test_its_state_goes_on_where_it_was():
    network = _Network()
    one, other = (WeightAverage(network, updates=3) for _ in range(2))
    for value in (1.0, 5.0):
        one.update(_at(network, value))
    other.load_state_dict(one.state_dict())
    for average in (one, other):
        average.update(_at(network, 2.0))
    assert torch.equal(one.network.weight, other.network.weight)


def test_a_run_keeps_judges_and_hands_on_the_mean(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[Any, list[dict[str, torch.Tensor]]] = {Distillation: [], Reinforcement: []}
    for learner in seen:
        original = learner.iterate

        def iterate(self: Any, original: Any = original) -> dict[str, float]:
            first = self.actor.state_dict()["mean_head.weight"].clone() if self.average else None
            metrics: dict[str, float] = original(self)
            if first is not None:
                now, mean = (a.mean_head.weight.detach().clone() for a in (self.actor, self.judged))
                seen[type(self)].append({"first": first, "now": now, "mean": mean})
            return metrics

        monkeypatch.setattr(learner, "iterate", iterate)
    judged: list[torch.Tensor] = []

    def evaluate(actor: Any, *args: Any, **settings: Any) -> Any:
        judged.append(actor.mean_head.weight.clone())
        return evaluate_actor(actor, *args, **settings)

    monkeypatch.setattr("visuomotor.train.evaluate_actor", evaluate)
    settings = [*SMALL, *DISTILL, demonstrations, "averaging_steps=96"]
    settings.append("distill.teacher.enough_success=null")  # no clone is judged
    settings[settings.index("run.final_episodes=0")] = "run.final_episodes=2"
    settings[settings.index("ppo.critic_warmup=1")] = "ppo.critic_warmup=0"
    assert train([*settings, f"out={tmp_path / 'run'}"]) == 0
    student, finetuned = seen.values()
    assert (len(student), len(finetuned)) == (4, 3)
    for phase in (student, finetuned):
        # What learns goes on from itself and not from the mean.
        assert all(torch.equal(b["first"], a["now"]) for a, b in pairwise(phase))
        assert not torch.equal(phase[-1]["mean"], phase[-1]["now"])
    assert torch.equal(finetuned[0]["first"], student[-1]["mean"])
    state, _, _ = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert torch.equal(state["policy"]["actor"]["mean_head.weight"], finetuned[-1]["mean"])
    assert torch.equal(judged[-1], finetuned[-1]["mean"])


def test_fewer_than_no_steps_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(train, ["averaging_steps=-1", f"out={tmp_path / 'run'}"]) == 2
    assert "averaging_steps=-1" in capsys.readouterr().err
