"""A factor of one's own: drawn, applied and told as all others; refused where it makes no sense."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from benchmarks import factors
from tests.runs import CPU, moving_actor, small_run
from visuomotor import envs
from visuomotor.envs import make_env
from visuomotor.envs.camera import RayCaster
from visuomotor.errors import UserError
from visuomotor.evaluation import episodes_csv, evaluate_actor, evaluation_env
from visuomotor.factors import OWN, Factor, beyond
from visuomotor.randomization import register_factor

CONFIG = small_run(episode_steps=3)
PAGE = Path(__file__).parent.parent / "docs" / "randomization.md"


@pytest.fixture
def registry():
    """What is registered in a test is gone afterwards."""
    with mock.patch.dict(OWN, clear=True):
        yield


def _ambient_light(model, field, values):
    field *= values.unsqueeze(2)


def test_a_factor_of_ones_own_is_drawn_applied_and_told(registry):
    plain = evaluation_env(CONFIG, num_envs=3, seed=0, strength=1.0, device=CPU, render=False)
    plain.reset()
    register_factor("ambient_light", field="light_ambient", bounds=(0.5, 0.9), neutral=0.9)(
        _ambient_light
    )

    @register_factor(
        "arm_weight", field="body_gravcomp", bounds=(0.0, 1.0), neutral=0.0, parts=("hand", "wrist")
    )
    def arm_weight(model, field, values):
        for column, body in enumerate(("jaco_arm/jaco_hand/hand", "jaco_arm/b_6")):
            field[:, model.body(body).id] = values[:, column]

    env = evaluation_env(CONFIG, num_envs=3, seed=0, strength=1.0, device=CPU, render=False)
    env.reset()
    names = list(env.randomizer.factor_names)
    assert names[-3:] == ["ambient_light", "arm_weight/hand", "arm_weight/wrist"]
    assert np.array_equal(env.factors[:, :-3], plain.factors)  # the others are as they were
    drawn = env.factors[:, -3]
    assert ((drawn >= 0.5) & (drawn <= 0.9)).all() and len(set(drawn)) == 3
    ambient = env.sim.model_field("light_ambient").numpy()
    expected = drawn[:, None, None] * env.sim.model.light_ambient
    np.testing.assert_allclose(ambient, expected, rtol=1e-6)
    hand = env.sim.model.body("jaco_arm/jaco_hand/hand").id
    np.testing.assert_allclose(env.sim.model_field("body_gravcomp")[:, hand], env.factors[:, -2])

    actor = moving_actor(CONFIG)
    episodes = evaluate_actor(actor, CONFIG, episodes=2, seed=0, strength=1.0, device=CPU)
    header = episodes_csv(episodes, seed=0).splitlines()[0]
    assert header.endswith("ambient_light,arm_weight/hand,arm_weight/wrist")
    quiet = evaluation_env(CONFIG, num_envs=1, seed=0, strength=0.0, device=CPU, render=False)
    quiet.reset()
    assert quiet.factors[0, -3:].tolist() == [0.9, 0.0, 0.0]


def test_the_pages_example_changes_what_is_seen_in_its_own_world(registry):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example in factors.PAGE
    plain = make_env(CONFIG, num_envs=3, seed=0, render=False)
    plain.reset()
    exec(example, {})
    env = make_env(CONFIG, num_envs=3, seed=0, render=False)
    env.reset()
    (column,) = env.randomizer.columns("ambient_light")

    def images(*values: float) -> torch.Tensor:
        """(3, 3, H, W) with these values of the factor, all else as drawn."""
        rows = env.factors.copy()
        rows[:, column] = values
        env.randomizer.apply(env.sim, everyone, rows)
        return RayCaster(env.sim, CONFIG.camera, env.sim.fields).render(everyone).int()

    everyone = torch.arange(3)
    before = RayCaster(plain.sim, CONFIG.camera, plain.sim.fields).render(everyone).int()
    assert torch.equal(images(1.0, 1.0, 1.0), before)
    factor = env.randomizer.factors[column]
    after = images(factor.low, 1.0, factor.high)
    assert (after[0] <= before[0]).all() and (before[0] - after[0]).float().mean() > 10
    assert torch.equal(after[1], before[1])
    assert (after[2] >= before[2]).all() and (after[2] - before[2]).float().mean() > 10


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bounds": (0.5, 0.9), "neutral": 1.0}, r"bounds=\(0.5, 0.9\) do not hold neutral=1.0"),
        ({"distribution": "normal"}, "distribution='normal'; valid: uniform, log_uniform, integer"),
        (
            {"bounds": (0.0, 2.0), "distribution": "log_uniform"},
            r"bounds=\(0.0, 2.0\); a log_uniform range is above 0",
        ),
        (
            {"bounds": (0.2, 1.7), "distribution": "integer"},
            r"bounds=\(0.2, 1.7\), neutral=1.0; an integer range is of whole numbers",
        ),
        ({"bounds": (-np.inf, np.inf)}, r"bounds=\(-inf, inf\), neutral=1.0; valid: .*finite"),
        ({"bounds": (0.5, np.nan)}, r"bounds=\(0.5, nan\), .*finite numbers"),
        ({"neutral": np.nan}, "neutral=nan; valid: .*finite numbers"),
        ({"bounds": (-1e308, 1e308)}, r"bounds=.*finite numbers"),
        ({"bounds": (0.5, "2")}, r"bounds=\(0.5, '2'\), .*finite numbers"),
        ({"bounds": 2.0}, "bounds=2.0, .*two ends of a range"),
        ({"bounds": (0.5, 1.0, 2.0)}, r"bounds=\(0.5, 1.0, 2.0\), .*two ends of a range"),
        ({"parts": ("a", "a")}, r"parts=\('a', 'a'\); valid: a tuple of names that differ"),
        ({"parts": "ab"}, "parts='ab'; valid: a tuple of names that differ"),
        ({"parts": ("a/b",)}, r"parts=\('a/b',\); valid: .*letters from a to z, digits"),
        ({"parts": (1,)}, r"parts=\(1,\); valid: .*letters from a to z, digits"),
        (
            {"field": "light_ambiet"},
            r"field='light_ambiet' is none .*did you mean light_ambient.*valid: those of .*MjModel",
        ),
        ({"field": "tex_data"}, "field='tex_data' is none that can differ between worlds"),
        ({"field": None}, "field=None is none that can differ between worlds"),
        ({"unit": 5}, "unit=5; valid: a few letters, or none"),
        ({"unit": "m\n"}, r"unit='m\\n'; valid: a few letters, or none"),
    ],
)
def test_a_factor_that_makes_no_sense_is_refused(registry, settings, told):
    given = {"field": "geom_friction", "bounds": (0.5, 2.0), "neutral": 1.0, **settings}
    with pytest.raises(UserError, match=f"^factor 'mine': .*{told}"):
        register_factor("mine", **given)
    assert OWN == {}


@pytest.mark.parametrize(
    "name", ["", "a,b", "a\nb", "mine\n", "prop_mass/block_0", "a b", "-a", "größe", "a.b", 5, None]
)
def test_a_name_that_no_table_or_command_can_have_is_refused(registry, name):
    told = f"a factor cannot be called {name!r}; valid: letters from a to z, digits, _ and -"
    with pytest.raises(UserError, match=re.escape(told)):
        register_factor(name, field="light_ambient", bounds=(0.5, 2.0), neutral=1.0)


def _raises(model, field, values):
    field[:, model.geom("tabel").id] *= values


def _of_another_shape(model, field, values):
    field *= values.repeat(1, 7)


def _returns(model, field, values):
    return field * values.unsqueeze(2)


def _divides_by_nothing(model, field, values):
    field /= (values - 0.5).unsqueeze(2)


def _writes_to_the_model(model, field, values):
    model.light_ambient[0, 0] = 0.1


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (_raises, "raised KeyError: .*Invalid name 'tabel'.*; it is called with the model, "),
        (_of_another_shape, r"raised RuntimeError: .*; .* light_ambient \(3, 3, 3\) and values"),
        (_returns, "returns a Tensor; it has to change the field in place and return nothing"),
        (_divides_by_nothing, "makes infinite or no numbers of light_ambient; .* from 0.5 to 2"),
        (_writes_to_the_model, "writes to model.light_ambient, which is every world's"),
    ],
)
def test_a_function_that_goes_wrong_is_told_of_before_any_episode(registry, function, told):
    register_factor("mine", field="light_ambient", bounds=(0.5, 2.0), neutral=1.0)(function)
    with pytest.raises(UserError, match=f"^factor 'mine': its function {told}") as refused:
        make_env(CONFIG, num_envs=1, render=False)
    assert "\n" not in str(refused.value)


def test_a_function_that_goes_wrong_later_is_told_of(registry):
    @register_factor("mine", field="light_ambient", bounds=(0.0, 1.0), neutral=0.0)
    def mine(model, field, values):
        if 0.0 < values[0] < 1.0:
            raise ZeroDivisionError("between the ends")

    env = make_env(CONFIG, num_envs=1, render=False)
    with pytest.raises(UserError, match=r"^factor 'mine': .*ZeroDivisionError: between the ends"):
        env.reset()


def test_what_is_no_function_is_no_factor(registry):
    with pytest.raises(UserError, match="factor 'mine': 5 is no function of model, field, values"):
        register_factor("mine", field="light_ambient", bounds=(0.5, 2.0), neutral=1.0)(5)


def test_a_name_is_taken_once(registry):
    mine = {"field": "light_ambient", "bounds": (0.5, 2.0), "neutral": 1.0}
    register_factor("mine", **mine)(_ambient_light)
    register_factor("mine", **mine)(_ambient_light)  # its module was imported anew
    with pytest.raises(UserError, match="'mine' is registered already"):
        register_factor("mine", **mine)(lambda model, field, values: None)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("hue", ()), ("prop_mass", ("another",)), ("colour", ("table",)), ("texture", ())],
)
def test_a_name_of_the_packages_is_taken(registry, name, parts):
    mine = {"field": "light_ambient", "bounds": (0.5, 2.0), "neutral": 1.0}
    register_factor(name, **mine, parts=parts)(_ambient_light)
    with pytest.raises(UserError, match=f"'{name}' is there already"):
        make_env(CONFIG, num_envs=1, render=False)


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(1.1, 1.4, (1.4, 1.8)), (0.6, 0.9, (0.2, 0.6)), (1.0, 1.4, (1.4, 1.8))],
)
def test_beyond_a_range_that_leaves_neutral_out_is_never_within_it(
    low: float, high: float, ends: tuple[float, float]
) -> None:
    drawn = [beyond(Factor("gain", low, high, 1.0), u / 10) for u in range(10)]
    assert min(drawn) >= ends[0] - 1e-9 and max(drawn) <= ends[1] + 1e-9
    assert max(drawn) - min(drawn) > 0.8 * (ends[1] - ends[0])


def test_beyond_is_past_the_range_and_within_what_a_world_can_have() -> None:
    assert beyond(Factor("delay", 0, 2, 0, "integer"), 0.5) == 3
    assert beyond(Factor("delay", 2, 2, 0, "integer"), 0.5) == 3  # one delay, always the same
    assert beyond(Factor("lights", 1, 3, 3, "integer", 1, 3), 0.5) == 3
    size = Factor("size", 0.5, 1.5, 1.0, least=0.1)
    assert beyond(size, 0.49) == 0.1 and beyond(size, 0.75) == pytest.approx(1.75)
    assert beyond(Factor("drop", 0.0, 0.8, 0.0, least=0.0, most=1.0), 0.9) == 1.0


def test_a_plugins_factors_are_there_for_every_task_and_a_broken_one_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> None:
        register_factor("of_a_plugin", field="geom_friction", bounds=(1.0, 1.0), neutral=1.0)(
            lambda model, field, values: None
        )

    def fail() -> None:
        raise ImportError("no module named nowhere")

    plugins = [SimpleNamespace(value="good", load=load), SimpleNamespace(value="bad", load=fail)]
    monkeypatch.setattr(envs, "entry_points", lambda group: plugins)
    envs._load_plugins.cache_clear()
    try:
        with mock.patch.dict(OWN):
            env = make_env(small_run(episode_steps=4), num_envs=1, seed=0, render=False)
            assert "of_a_plugin" in env.randomizer.factor_names
            assert "plugin bad cannot be imported: ImportError" in capsys.readouterr().err
            with pytest.raises(UserError, match=r"unknown task 'nothing'.*plugin bad cannot be"):
                envs.make_task("nothing")
    finally:
        envs._load_plugins.cache_clear()
