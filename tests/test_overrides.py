"""key=value, YAML files and the checks of a run's settings."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from visuomotor import config as config_module
from visuomotor.config import (
    AppearanceConfig,
    AuxConfig,
    Config,
    DistillConfig,
    DynamicsConfig,
    PPOConfig,
    RandomizationConfig,
)
from visuomotor.errors import UserError
from visuomotor.limits import LIMITS, Limit, at_least, require, validate, without_effect
from visuomotor.overrides import (
    leaf_types,
    leaf_values,
    load_yaml,
    nearest_keys,
    parse_overrides,
    save_yaml,
    to_yaml,
    usage,
)


@dataclass(frozen=True)
class Inner:
    speed: float = 0.5  # m/s


@dataclass(frozen=True)
class Command:
    """As a small command has it."""

    policy: str = ""  # a run's folder
    episodes: int = 200
    strength: float | None = None
    video: bool = True
    sizes: tuple[int, ...] = (1, 2)
    # Of the grip, in newtons, as measured at the fingertips; 0: none. Tuned on blocks of
    # 45 mm.
    force: float = 2.0
    # What no field follows directly.

    share: float = 0.5  # at first ...
    # ... and in the end. Not less.
    final_share: float = 0.1  # of worlds
    inner: Inner = field(default_factory=Inner)

    def validate(self) -> None:
        require("episodes", self.episodes, at_least(1))


def refusal(*argv: str, cls: type = Config) -> str:
    with pytest.raises(UserError) as caught:
        parse_overrides(list(argv), cls)
    return str(caught.value)


# --- command line -------------------------------------------------------------------------------


def test_no_arguments_give_the_defaults() -> None:
    assert parse_overrides([], Config) == Config()


def test_values_land_in_their_groups_and_nowhere_else() -> None:
    parsed = parse_overrides(
        ["task=lifting", "ppo.gamma=0.97", "randomization.dynamics.prop_friction=[0.8,1.2]"],
        Config,
    )
    dynamics = DynamicsConfig(prop_friction=(0.8, 1.2))
    assert parsed == Config(
        task="lifting",
        ppo=PPOConfig(gamma=0.97),
        randomization=RandomizationConfig(dynamics=dynamics),
    )


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("total_steps=4_000_000", "total_steps", 4_000_000),
        ("total_steps=2e6", "total_steps", 2_000_000),
        ("gail.weight=0", "gail.weight", 0.0),
        ("gail.learning_rate=1e-4", "gail.learning_rate", 1e-4),
        ("env.episode_steps=none", "env.episode_steps", None),
        ("env.episode_steps=7", "env.episode_steps", 7),
        ("ppo.value_clip=0.2", "ppo.value_clip", 0.2),
        ("actor.recurrent=False", "actor.recurrent", False),
        ("out=runs/a=b", "out", "runs/a=b"),
        ("out=123", "out", "123"),
        ("critic.hidden_sizes=[64]", "critic.hidden_sizes", (64,)),
        ("critic.hidden_sizes=(64, 32,)", "critic.hidden_sizes", (64, 32)),
        ("critic.hidden_sizes=64,32,16", "critic.hidden_sizes", (64, 32, 16)),
        ("camera.pos=[0, -1, .5]", "camera.pos", (0.0, -1.0, 0.5)),
    ],
)
def test_a_text_becomes_the_type_of_its_setting(text: str, key: str, value: object) -> None:
    parsed = leaf_values(parse_overrides([text], Config))[key]
    assert parsed == value
    assert type(parsed) is type(value)
    if isinstance(value, tuple):
        assert [type(entry) for entry in parsed] == [type(entry) for entry in value]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("ppo.gama=0.9", ["'ppo.gama'", "ppo.gamma"]),
        ("gamma=0.9", ["'gamma'", "ppo.gamma"]),
        ("block_frictoin=[1,1]", ["randomization.dynamics.prop_friction"]),
        ("--task=lifting", ["'--task'", "task"]),
        ("zzz=1", ["'zzz'", "num_envs", "ppo.*"]),
        ("ppo=1", ["'ppo' is a group", "ppo.gamma"]),
        ("ppo.gamma.x=1", ["'ppo.gamma' is no group"]),
        ("stacking", ["'stacking'", "key=value"]),
        ("=3", ["unknown key ''"]),
        ("out=", ["out=", "no value", "text or none"]),
        ("seed=1.5", ["seed=1.5", "whole number"]),
        ("seed=one", ["seed=one", "whole number"]),
        ("seed=none", ["seed=none", "whole number"]),
        ("ppo.gamma=nan", ["ppo.gamma=nan", "a number"]),
        ("ppo.gamma=inf", ["ppo.gamma=inf", "a number"]),
        ("run.tensorboard=1", ["run.tensorboard=1", "true or false"]),
        ("camera.pos=[0,1]", ["camera.pos=[0,1]", "2 entries", "list of 3 numbers"]),
        ("critic.hidden_sizes=[64,x]", ["critic.hidden_sizes[1]=x", "whole number"]),
        ("critic.hidden_sizes=[]", ["critic.hidden_sizes=[]", "at least one"]),
    ],
)
def test_bad_arguments_are_named_with_what_is_valid(argument: str, words: list[str]) -> None:
    message = refusal(argument)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_repeated_key_is_refused() -> None:
    assert "seed is given twice" in refusal("seed=1", "task=lifting", "seed=1")


def test_the_nearest_key_comes_first() -> None:
    assert nearest_keys("ppo.learning_rat", list(leaf_types(Config)))[0] == "ppo.learning_rate"
    assert nearest_keys("gail.learning_rte", list(leaf_types(Config)))[0] == "gail.learning_rate"


def test_any_command_can_have_a_small_dataclass_and_its_own_check() -> None:
    parsed = parse_overrides(["policy=runs/x", "inner.speed=2", "strength=0.5"], Command)
    assert parsed == Command(policy="runs/x", inner=Inner(speed=2.0), strength=0.5)
    assert refusal("episodes=0", cls=Command) == "episodes=0 is not valid; valid: from 1"
    assert "inner.speed" in refusal("inner.sped=1", cls=Command)


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_prints_every_key_and_leaves_with_0(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse_overrides(["seed=1", word], Config)
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"  {key}=" in printed for key in leaf_types(Config))


def test_usage_tells_default_type_range_and_meaning() -> None:
    lines = usage(Command).splitlines()
    assert "  policy=  (text)  # a run's folder" in lines
    assert "  strength=none  (a number or none)" in lines
    assert "  sizes=[1,2]  (a list [..., ...] of whole numbers)" in lines
    assert "  inner.speed=0.5  (a number)  # m/s" in lines
    about = "Of the grip, in newtons, as measured at the fingertips; 0: none."
    assert f"  force=2.0  (a number)  # {about}" in lines
    assert "  share=0.5  (a number)  # at first ..." in lines
    assert "  final_share=0.1  (a number)  # of worlds. ... and in the end." in lines
    (gamma,) = [line for line in usage(Config).splitlines() if line.startswith("  ppo.gamma=")]
    assert "above 0 up to 1" in gamma


def test_every_setting_of_a_run_says_what_it_is() -> None:
    told = [line for line in usage(Config).splitlines() if line.startswith("  ")]
    assert len(told) == len(leaf_types(Config))
    silent = [line for line in told if "  # " not in line]
    assert silent == []


# --- what is valid ------------------------------------------------------------------------------


def test_the_defaults_are_valid() -> None:
    validate(Config())
    validate(Config(algorithm="distill"))


def test_every_number_of_a_run_has_a_limit() -> None:
    groups = [
        value
        for _, value in inspect.getmembers(config_module, dataclasses.is_dataclass)
        if value.__module__ == config_module.__name__
    ]
    assert set(LIMITS) == set(groups)
    for group in groups:
        hints = typing.get_type_hints(group)
        numbers = {
            name
            for name, hint in hints.items()
            if any(kind in (int, float) for kind in (hint, *typing.get_args(hint)))
        }
        assert numbers, group
        assert numbers <= set(LIMITS[group]), group
        assert set(LIMITS[group]) <= set(hints), group


@pytest.mark.parametrize(
    "argument",
    [
        "seed=-1",
        "num_envs=0",
        "total_steps=0",
        "algorithm=rl",
        "device=gpu",
        "device=cuda:x",
        "gail.reward=jsd",
        "gail.weight=1.1",
        "ppo.gamma=0",
        "ppo.gamma=1.01",
        "ppo.clip_coef=0",
        "env.control_dt=0",
        "env.episode_steps=0",
        "camera.height=19",
        "camera.fovy=180",
        "camera.period=0",
        "randomization.strength=1.5",
        "randomization.dynamics.prop_mass=[0,1]",
        "randomization.dynamics.prop_mass=[2,1]",
        "randomization.appearance.hue=[-0.6,0]",
        "randomization.appearance.num_lights=[0,3]",
        "randomization.latency.action_drop=[0,1]",
        "run.keep_checkpoints=0",
        "cloning.decay_steps=0",
        # What no machine can hold.
        "num_envs=400000000",
        "distill.teacher.num_envs=400000000",
        "total_steps=1e300",
        "actor.hidden_dim=1000000000",
        "critic.hidden_sizes=[64,1000000000]",
        "ppo.num_steps=1e12",
        "aux.memory=1e12",
        "aux.batch_size=1e12",
        "distill.memory=1e12",
        "turned_copies=1e12",
        "env.num_threads=1e9",
        "env.physics_dt=1e-300",
        "env.physics_dt=1e-7",
    ],
)
def test_impossible_values_are_refused_with_key_and_range(argument: str) -> None:
    message = refusal(argument)
    assert message.startswith(argument.partition("=")[0] + "=")
    assert "valid: " in message


@pytest.mark.parametrize(
    "argument",
    [
        "ppo.gamma=1",
        "ppo.gae_lambda=0",
        "gail.weight=1",
        "randomization.dynamics.prop_mass=[1,1]",
        "randomization.strength=0",
        "env.num_threads=0",
        "device=cuda:1",
    ],
)
def test_the_ends_of_a_range_are_valid_where_they_mean_something(argument: str) -> None:
    parse_overrides([argument], Config)


def test_worlds_must_divide_into_minibatches() -> None:
    message = refusal("num_envs=10")
    assert "num_envs=10" in message and "ppo.minibatches=4" in message and "such as 8" in message
    parse_overrides(["num_envs=10", "ppo.minibatches=5"], Config)
    # The teacher's 128 worlds count only where there is a teacher.
    odd = ["num_envs=9", "ppo.minibatches=3"]
    parse_overrides(odd, Config)
    assert "distill.teacher.num_envs=128" in refusal("algorithm=distill", *odd)


def test_the_start_of_ril_needs_a_world_for_every_minibatch() -> None:
    message = refusal("num_envs=4")
    assert "distill.minibatches=8" in message and "num_envs=4" in message
    for settings in (
        ["distill.minibatches=4"],
        ["cloning.start_steps=0"],
        ["cloning.enabled=false"],
        ["start_from=stacking"],
    ):
        parse_overrides(["num_envs=4", *settings], Config)
    assert "distill.minibatches=8" in refusal("algorithm=distill", "num_envs=4")


def test_a_rollout_has_an_end() -> None:
    assert "20000000 env steps" in refusal("num_envs=20000", "ppo.num_steps=1000")
    parse_overrides(["num_envs=65536", "ppo.num_steps=32"], Config)


def test_a_control_step_holds_no_endless_number_of_physics_steps() -> None:
    assert "100000 steps of env.physics_dt" in refusal("env.control_dt=1", "env.physics_dt=1e-5")
    parse_overrides(["env.control_dt=0.05", "env.physics_dt=1e-5"], Config)


def test_a_control_step_is_a_whole_number_of_physics_steps() -> None:
    assert "env.control_dt=0.06" in refusal("env.physics_dt=0.03")
    refusal("env.control_dt=0.05", "env.physics_dt=0.1")
    for physics_dt in ("0.05", "0.01", "0.005", "0.002", "0.001"):
        parse_overrides([f"env.physics_dt={physics_dt}"], Config)


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert "camera.lookat" in refusal("camera.pos=[0,0,1]", "camera.lookat=[0,0,1]")
    assert "ppo.max_learning_rate" in refusal("ppo.learning_rate=0.01")
    assert "camera_fovy" in refusal("camera.fovy=1")


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        (["algorithm=distill", "total_steps=5"], ["total_steps"]),
        (["algorithm=distill", "distill.epochs=2"], []),
        (["total_steps=5000", "distill.epochs=2", "distill.teacher.hidden_sizes=[8]"], []),
        (["distill.dagger_steps=5", "ppo.epochs=2"], ["distill.dagger_steps"]),
        (["distill.teacher.num_envs=8"], ["distill.teacher.num_envs"]),
        (["cloning.enabled=false", "distill.epochs=2"], ["distill.epochs"]),
        (["distill.teacher_run=pouring"], []),  # which is refused
        (["aux.hold=0.2", "aux.start_updates=5"], ["aux.hold"]),
        (["aux.hold=0.2", "aux.after_start=true"], []),
        (["aux.hold=0.2", "demonstrations=mine.hdf5"], []),  # which may lack actions
        (["aux.hold=0.2", "cloning.enabled=false"], []),
        (["aux.after_start=true", "cloning.enabled=false"], ["aux.after_start"]),
        (["start_from=lifting", "aux.hold=0.2", "distill.finetune_noise=1"], ["aux.hold"]),
        (["start_from=lifting", "aux.hold=0.2", "aux.after_start=true"], []),
        (["algorithm=distill", "aux.minibatches=2", "aux.memory=500"], ["aux.minibatches"]),
        (["algorithm=distill", "aux.after_start=true"], ["aux.after_start"]),
    ],
    ids=str,
)
def test_settings_that_a_run_never_reads_are_known(settings: list[str], idle: list[str]) -> None:
    keys = [setting.partition("=")[0] for setting in settings]
    assert without_effect(parse_overrides(settings, Config), keys) == idle


def test_a_limit_knows_open_and_closed_ends() -> None:
    half_open = Limit(low=0, high=1, low_open=True)
    assert [half_open.holds(value) for value in (0, 0.5, 1, 1.5, None)] == [
        False, True, True, False, True,
    ]  # fmt: skip
    assert half_open.describe() == "above 0 up to 1"


def test_a_limit_is_told_in_full() -> None:
    assert refusal("seed=-1").endswith("valid: from 0 up to 1099511627775")
    assert Limit(low=1e-5, high=0.5).describe() == "from 1e-05 up to 0.5"


# --- YAML ---------------------------------------------------------------------------------------


def test_a_saved_config_loads_as_the_same_config(tmp_path: Path) -> None:
    config = Config(
        task="lifting",
        out="123",
        demonstrations=None,
        ppo=PPOConfig(learning_rate=5e-4, min_learning_rate=1e-5, value_clip=0.1 + 0.2),
    )
    save_yaml(config, tmp_path / "config.yaml")
    loaded = load_yaml(tmp_path / "config.yaml", Config)
    assert loaded == config
    assert {k: type(v) for k, v in leaf_values(loaded).items()} == {
        k: type(v) for k, v in leaf_values(config).items()
    }


def test_a_saved_config_names_every_setting() -> None:
    written = to_yaml(Config())
    assert "  gamma: 0.98\n" in written
    assert "    prop_mass: [0.5, 2.0]\n" in written
    assert all(f"{key.rpartition('.')[2]}:" in written for key in leaf_types(Config))


def test_a_file_may_leave_settings_out(tmp_path: Path) -> None:
    path = tmp_path / "part.yaml"
    # 5e-4 is text to YAML 1.1, and a whole number may stand for a float.
    named = "task: stacking\nalgorithm: ril\nrun: {tensorboard: true}\n"
    path.write_text(
        f"{named}num_envs: 64\ngail: {{weight: 1, learning_rate: 5e-4}}\nppo:\n  epochs: 2\n"
    )
    loaded = load_yaml(path, Config)
    # Runs from before had no shadows, no mean of weights, PPO after every student, and a CNN that
    # learned from replays and all through ril.
    appearance = AppearanceConfig(cast_shadow=(0.0, 0.0))
    default = Config(
        averaging_steps=0,
        randomization=RandomizationConfig(appearance=appearance),
        distill=DistillConfig(replays_train_encoder=True, enough_success=None),
        aux=AuxConfig(after_start=True),
    )
    assert loaded == replace(
        default,
        num_envs=64,
        gail=replace(default.gail, weight=1.0, learning_rate=5e-4),
        ppo=replace(default.ppo, epochs=2),
    )
    path.write_text(named)
    assert load_yaml(path, Config) == default
    path.write_text(f"{named}randomization: {{appearance: {{cast_shadow: [0.2, 0.5]}}}}")
    assert load_yaml(path, Config).randomization.appearance.cast_shadow == (0.2, 0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ppo: {gama: 0.9}", ["'ppo.gama'", "ppo.gamma"]),
        ("num_env: 3", ["num_envs"]),
        ("ppo: 3", ["ppo", "group"]),
        ("- 1\n- 2", ["the file is a list"]),
        ("seed: [1]", ["seed is a list", "whole number"]),
        ("seed: true", ["seed", "whole number"]),
        ("seed:", ["seed is empty", "whole number"]),
        ("seed: {a: 1}", ["seed is a group of keys"]),
        ("task: 3", ["task", "text in quotes"]),
        ("ppo: {gamma: .nan}", ["ppo.gamma", "a number"]),
        (
            "task: a\nalgorithm: ril\nrun: {tensorboard: true}\nppo: {gamma: 2}",
            ["ppo.gamma=2", "up to 1"],
        ),
        ("seed: 1\nseed: 2", ["seed is given twice"]),
        ("seed: [1", ["no valid YAML"]),
        ("seed: !!python/object/apply:os.getcwd []", ["no valid YAML"]),
        ("[1]: 2", ["no valid YAML"]),
        ("", ["empty, cut short or damaged", "not say task or algorithm or run.tensorboard;"]),
        ("task: lifting\nrun: {tensorboard: true}", ["damaged", "does not say algorithm;"]),
        ("algorithm: ril\nrun: {tensorboard: true}", ["damaged", "does not say task;"]),
        ("task: lifting\nalgorithm: ril", ["cut short", "does not say run.tensorboard;"]),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_yaml(path, Config)
    message = str(caught.value)
    assert all(word in message for word in [str(path), *words]), message
    assert "\n" not in message


def test_a_file_that_was_cut_short_anywhere_does_not_read_as_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    whole = to_yaml(Config()).rstrip()
    path.write_text(whole)
    assert load_yaml(path, Config) == Config()
    for end in range(0, len(whole), 7):
        path.write_text(whole[:end])
        with pytest.raises(UserError, match=r"config\.yaml"):
            load_yaml(path, Config)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_yaml(tmp_path / "none.yaml", Config)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml"):
        load_yaml(tmp_path / "binary.yaml", Config)
