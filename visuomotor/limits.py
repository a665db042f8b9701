"""Which values of a setting make sense, and which settings must fit together.

Knows the dataclasses of `config` and nothing that they configure: names of tasks and files are
checked by who opens them. Bounds keep out what cannot work or has no meaning; they do not judge
taste.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from visuomotor.config import (
    MOST_BLUR,
    MOST_CLUTTER,
    ActorConfig,
    AppearanceConfig,
    AuxConfig,
    CameraConfig,
    CloningConfig,
    Config,
    CriticConfig,
    CurriculumConfig,
    DistillConfig,
    DynamicsConfig,
    EnvConfig,
    GailConfig,
    LatencyConfig,
    PPOConfig,
    RandomizationConfig,
    RunConfig,
    TeacherConfig,
)
from visuomotor.errors import UserError

# A step count this close to a whole number is one: 0.05 / 0.01 is 5.000000000000001 in binary.
STEP_TOLERANCE = 1e-6
LEAST_ASIDE = 1e-6  # m, of a camera from straight above or below what it looks at
SMALLEST_IMAGE = 20  # pixels a side: what the two convolutions of the pixel actor need
# Whether the machine has it is for cli.resolve_device to say.
DEVICE_NAME = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)
# What no machine can hold, or no run live to see: beyond these a number is a slip of the hand.
MOST_STEPS = 10**12  # env steps: three years at 10,000 a second
MOST_WORLDS = 2**16  # each with a model, a camera's image and a rollout of its own
MOST_ROLLOUT = 2**24  # env steps in a rollout: of 64x64 pixels they are 200 GB
MOST_FRAMES = 10**7  # frames kept: of 64x64 pixels they are 120 GB
MOST_BATCH = 10**7  # in a minibatch
MOST_ROLLOUTS = 10**4  # kept
MOST_UNITS = 2**14  # of a layer: an LSTM of so many has 2 billion weights, which take 8 GB
# Of an evaluation, whose outcomes are held in memory; an interval of 0.1 points takes so many.
MOST_EPISODES = 10**6
# Control steps of one, ten times the longest task: what 64 worlds show in them is held, too, 6 GB.
MOST_EPISODE_STEPS = 10**4
MOST_DEMONSTRATIONS = 10**6  # made out of those that there are
MOST_THREADS = 4096
LEAST_PHYSICS_DT = 1e-5  # s; a contact is stiff to steps of 1e-3
MOST_SUBSTEPS = 10_000  # physics steps in a control step: the shortest usual ones in the longest


@dataclass(frozen=True)
class Limit:
    """The valid values of a setting; of a tuple, of each of its entries. None is always valid."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False  # low itself is not valid
    high_open: bool = False  # high itself is not valid
    ascending: bool = False  # a range: its first entry is not above its second
    filled: bool = False  # a tuple with at least one entry
    choices: tuple[str, ...] = ()

    def holds(self, value: Any) -> bool:
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        entries = value if isinstance(value, tuple) else (value,)
        if self.ascending and value[0] > value[1]:
            return False
        if self.filled and len(entries) == 0:
            return False
        return all(self._bounds(entry) for entry in entries)

    def _bounds(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def describe(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        low = f"{'above' if self.low_open else 'from'} {_plain(self.low)}"
        high = f"{'below' if self.high_open else 'up to'} {_plain(self.high)}"
        bounds = [low] * (self.low > -math.inf) + [high] * (self.high < math.inf)
        return ", ".join(
            [" ".join(bounds)] * bool(bounds)
            + ["lowest first"] * self.ascending
            + ["at least one"] * self.filled
        )


def _plain(number: float) -> str:
    """A whole number in full: 1e+12 would not tell where it ends."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def at_least(low: float) -> Limit:
    return Limit(low=low)


def between(low: float, high: float) -> Limit:
    return Limit(low=low, high=high)


def one_of(*choices: str) -> Limit:
    return Limit(choices=choices)


def range_within(low: float, high: float, *, low_open: bool = False) -> Limit:
    return Limit(low=low, high=high, low_open=low_open, ascending=True)


ANY = Limit()
POSITIVE = Limit(low=0, low_open=True)
SHARE = between(0, 1)
SCALE = range_within(0, math.inf, low_open=True)  # a factor of 0 would take the thing away
LAYERS = Limit(low=1, high=MOST_UNITS, filled=True)
UNITS = between(1, MOST_UNITS)
WORLDS = between(1, MOST_WORLDS)
BATCH = between(1, MOST_BATCH)
STEPS = between(0, MOST_STEPS)

LIMITS: dict[type, dict[str, Limit]] = {
    Config: {
        "algorithm": one_of("ril", "distill"),
        # NumPy's seed sequences take no negative numbers.
        "seed": between(0, 2**40 - 1),  # evaluations lie beyond
        "num_envs": WORLDS,
        "total_steps": between(1, MOST_STEPS),
        "averaging_steps": STEPS,
        "retargeted": between(0, MOST_DEMONSTRATIONS),
        "turned_copies": between(0, MOST_DEMONSTRATIONS),
    },
    EnvConfig: {
        "episode_steps": between(1, MOST_STEPS),
        "control_dt": Limit(low=0, high=1, low_open=True),
        "physics_dt": between(LEAST_PHYSICS_DT, 1),
        "num_threads": between(0, MOST_THREADS),
    },
    CameraConfig: {
        "height": between(SMALLEST_IMAGE, 1024),
        "width": between(SMALLEST_IMAGE, 1024),
        "pos": between(-10, 10),
        "lookat": between(-10, 10),
        "fovy": Limit(low=0, high=180, low_open=True, high_open=True),
        "period": between(1, MOST_STEPS),
    },
    AppearanceConfig: {
        "camera_pos": range_within(-1, 1),
        "camera_rotation": range_within(-180, 180),
        "camera_fovy": range_within(-180, 180),
        "num_lights": range_within(1, 3),
        "light_pos": range_within(-10, 10),
        "light_direction": range_within(-90, 90),
        "light_colour": range_within(0, 10),
        "arm_colour": range_within(-1, 1),
        "prop_colour": range_within(-1, 1),
        "table_colour": range_within(-1, 1),
        "floor_colour": range_within(-1, 1),
        "texture_repeat": SCALE,
        "brightness": range_within(0, 10),
        "contrast": range_within(0, 10),
        "hue": range_within(-0.5, 0.5),
        "shade": range_within(0, 1),
        "blur": range_within(0, MOST_BLUR),
        "cast_shadow": range_within(-1, 1),
        "clutter": range_within(0, MOST_CLUTTER),
        "pixel_noise": range_within(0, 255),
    },
    DynamicsConfig: {
        "prop_friction": SCALE,
        "prop_mass": SCALE,
        "prop_inertia": SCALE,
        "prop_size": SCALE,
        "joint_damping": SCALE,
        "joint_armature": SCALE,
        "joint_friction": SCALE,
        "actuator_gain": SCALE,
        "gravity_tilt": range_within(-90, 90),
    },
    LatencyConfig: {
        "camera_delay": range_within(0, 100),
        "action_delay": range_within(0, 100),
        "action_drop": Limit(low=0, high=1, high_open=True, ascending=True),
        "proprio_noise": range_within(0, math.inf),
    },
    RandomizationConfig: {"strength": SHARE, "curriculum_steps": STEPS},
    ActorConfig: {
        "encoder": one_of("compact", "keypoints", "maps", "wide_maps", "flat"),
        "reads": one_of("both", "located", "features"),
        "visual_dim": UNITS,
        "proprio_dim": UNITS,
        "hidden_dim": UNITS,
        "init_log_std_arm": between(-10, 2),
        "init_log_std_finger": between(-10, 2),
        "min_std_arm": at_least(0),
        "min_std_finger": at_least(0),
    },
    CriticConfig: {"hidden_sizes": LAYERS},
    GailConfig: {
        "weight": SHARE,
        "reward": one_of("gail", "log_d", "airl"),
        "clip": POSITIVE,
        "scale": at_least(0),
        "learning_rate": POSITIVE,
        "updates": at_least(1),
        "batch_size": BATCH,
        "hidden_sizes": LAYERS,
        "gradient_penalty": at_least(0),
    },
    AuxConfig: {
        "weight": at_least(0),
        "hidden_sizes": LAYERS,
        "start_frames": between(1, MOST_FRAMES),
        "start_updates": at_least(0),
        "scattered": between(0, MOST_FRAMES),
        "minibatches": at_least(1),
        "batch_size": BATCH,
        "replayed": at_least(0),
        "memory": between(1, MOST_FRAMES),
        "learning_rate": POSITIVE,
        "hold": at_least(0),
    },
    PPOConfig: {
        "num_steps": between(1, MOST_ROLLOUT),
        "epochs": at_least(1),
        "encoder_epochs": at_least(0),
        "minibatches": at_least(1),
        "gamma": Limit(low=0, high=1, low_open=True),
        "gae_lambda": SHARE,
        "clip_coef": Limit(low=0, high=1, low_open=True, high_open=True),
        "value_clip": POSITIVE,
        "ent_coef": at_least(0),
        "learning_rate": POSITIVE,
        "max_learning_rate": POSITIVE,
        "min_learning_rate": POSITIVE,
        "critic_learning_rate": POSITIVE,
        "target_kl": at_least(0),
        "anneal_fraction": SHARE,
        "final_noise": Limit(low=0, high=1, low_open=True),
        "noise_anneal_fraction": SHARE,
        "max_grad_norm": POSITIVE,
        "mean_penalty": at_least(0),
        "critic_warmup": at_least(0),
    },
    CurriculumConfig: {"initial_share": SHARE, "final_share": SHARE, "by_stage": SHARE},
    CloningConfig: {
        "start_updates": at_least(0),
        "start_steps": STEPS,
        "learning_rate": POSITIVE,
        "weight": at_least(0),
        "final_weight": at_least(0),
        "decay_steps": between(1, MOST_STEPS),
        "label_weight": at_least(0),
        "final_label_weight": at_least(0),
        "label_decay_steps": between(1, MOST_STEPS),
    },
    TeacherConfig: {
        "enough_success": Limit(low=0, high=1, low_open=True),
        "total_steps": between(1, MOST_STEPS),
        "num_envs": WORLDS,
        "episode_steps": between(1, MOST_STEPS),
        "hidden_sizes": LAYERS,
        "init_log_std_arm": between(-10, 2),
        "init_log_std_finger": between(-10, 2),
        "min_std_arm": at_least(0),
        "min_std_finger": at_least(0),
    },
    DistillConfig: {
        "dagger_steps": STEPS,
        "learning_rate": POSITIVE,
        "vision_learning_rate": POSITIVE,
        "finger_loss": one_of("squared", "linear"),
        "teacher_share": SHARE,
        "final_teacher_share": SHARE,
        "anneal_fraction": SHARE,
        "action_noise": at_least(0),
        "noisy_share": SHARE,
        "minibatches": at_least(1),
        "epochs": at_least(1),
        "replayed": at_least(0),
        "memory": between(1, MOST_ROLLOUTS),
        "finetune_steps": STEPS,
        "enough_success": Limit(low=0, high=1, low_open=True),
        "finetune_noise": Limit(low=0, high=1, low_open=True),
        "finetune_label_weight": at_least(0),
        "rehearsal_steps": STEPS,
    },
    RunConfig: {
        "checkpoint_seconds": at_least(0),
        "keep_checkpoints": at_least(1),
        "evaluate_every": STEPS,
        "evaluate_episodes": between(1, MOST_EPISODES),
        "final_episodes": between(0, MOST_EPISODES),
    },
}


def validate(config: Any) -> None:
    """Checks a dataclass and its groups. Raises UserError with the key and what is valid.

    Settings of a run are checked against LIMITS and against each other; any other dataclass has
    its say in its own `validate(self)`, if it defines one.
    """
    _check_limits(config, "")
    own = getattr(config, "validate", None)
    if own is not None:
        own()
    if isinstance(config, Config):
        _check_together(config)


def check_camera(camera: CameraConfig) -> None:
    """As `validate`, of a camera that is set by other means than settings. Raises UserError."""
    _check_limits(camera, "camera.")
    _refuse(_camera_contradictions(camera))


def require(key: str, value: Any, limit: Limit) -> None:
    """Raises UserError unless `limit` holds for the value of this key."""
    if not limit.holds(value):
        raise UserError(f"{key}={show(value)} is not valid; valid: {limit.describe()}")


# Of `distill`, what ril with a start uses too: all of a student, the shape of its clone, and the
# noise after it.
_OF_A_START = (
    *("learning_rate", "vision_learning_rate", "finger_loss", "teacher_share"),
    *("final_teacher_share", "anneal_fraction", "action_noise", "noisy_share", "minibatches"),
    *("epochs", "replayed", "memory", "replays_train_encoder", "teacher.hidden_sizes"),
    "finetune_noise",
)


# Of AuxConfig: what ril's reinforcement reads where its CNN goes on learning.
_OF_A_PHASE = ("minibatches", "learning_rate", "hold")


def without_effect(config: Config, given: Iterable[str]) -> list[str]:
    """Those of the keys given that the run never reads."""
    idle = {f"aux.{name}" for name in _OF_A_PHASE}
    if config.algorithm == "distill":
        idle |= {"total_steps", "aux.after_start"}
        return [key for key in given if key in idle]
    starts, goes_on = config.starting > 0, config.start_from is not None
    if not (starts or goes_on):
        idle = {"aux.after_start"}
    elif config.aux.after_start or (starts and config.demonstrations is not None):
        # Somebody's own demonstrations may lack actions: no start then, and the CNN learns on.
        idle = set()
    read = [f"distill.{name}" for name in _OF_A_START] if starts else []
    if goes_on:
        read.append("distill.finetune_noise")
    read.append("distill.teacher_run")  # a teacher's run is refused instead
    return [key for key in given if key in idle or (key.startswith("distill.") and key not in read)]


def describe_limit(cls: type[Any], key: str) -> str:
    """The valid range of a dotted key of a dataclass in words; empty if there is none."""
    name, dot, rest = key.partition(".")
    if dot:
        group = next(f for f in dataclasses.fields(cls) if f.name == name)
        inner = group.default_factory
        return describe_limit(inner, rest) if isinstance(inner, type) else ""
    limit = LIMITS.get(cls, {}).get(name)
    return "" if limit is None else limit.describe()


def show(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(map(show, value))}]"
    return str(value)


def _check_limits(config: Any, prefix: str) -> None:
    limits = LIMITS.get(type(config), {})
    for f in dataclasses.fields(config):
        key, value = f"{prefix}{f.name}", getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            _check_limits(value, f"{key}.")
        elif f.name in limits:
            require(key, value, limits[f.name])


def _check_together(config: Config) -> None:
    _refuse(_contradictions(config))


def _refuse(contradictions: Iterable[tuple[str, bool, str]]) -> None:
    for what, wrong, remedy in contradictions:
        if wrong:
            raise UserError(f"{what}; {remedy}")


def _contradictions(config: Config) -> Iterable[tuple[str, bool, str]]:
    """(what is the matter, whether it is, what is valid) for settings that must fit together."""
    ppo, env, camera = config.ppo, config.env, config.camera
    yield (
        f"device={config.device} is no device",
        DEVICE_NAME.fullmatch(config.device) is None,
        "valid: auto, cpu, cuda, cuda:N",
    )
    worlds = {"num_envs": config.num_envs}
    if config.algorithm == "distill":
        worlds["distill.teacher.num_envs"] = config.distill.teacher.num_envs
    for key, num_envs in worlds.items():
        yield (
            f"{key}={num_envs} with ppo.num_steps={ppo.num_steps} makes a rollout of "
            f"{num_envs * ppo.num_steps} env steps",
            num_envs * ppo.num_steps > MOST_ROLLOUT,
            f"valid: up to {MOST_ROLLOUT}",
        )
        below = num_envs // ppo.minibatches * ppo.minibatches
        yield (
            f"{key}={num_envs} does not divide into ppo.minibatches={ppo.minibatches} equal groups",
            num_envs % ppo.minibatches != 0,
            f"valid: a multiple of {ppo.minibatches}, such as "
            f"{below if below > 0 else ppo.minibatches}, or another ppo.minibatches",
        )
    distill = config.distill
    starts = config.algorithm == "ril" and config.starting > 0
    yield (
        f"distill.minibatches={distill.minibatches} is more than num_envs={config.num_envs}"
        + ", which the start of algorithm=ril has too" * starts,
        (starts or config.algorithm == "distill") and distill.minibatches > config.num_envs,
        f"valid: 1 to {config.num_envs}" + ", or cloning.start_steps=0: no such start" * starts,
    )
    yield (
        f"distill.vision_learning_rate={distill.vision_learning_rate} with aux.weight=0 leaves the "
        "CNN nothing to learn from",
        distill.vision_learning_rate is not None and config.aux.weight == 0.0,
        "valid: aux.weight above 0, or distill.vision_learning_rate=null",
    )
    yield (
        f"actor.encoder={config.actor.encoder} with aux.weight=0 leaves the maps nothing to learn "
        "from",
        config.actor.encoder in ("maps", "wide_maps") and config.aux.weight == 0.0,
        "valid: aux.weight above 0, or another actor.encoder",
    )
    yield (
        "actor.from_hand=true with aux.weight=0 leaves nothing that tells where things are",
        config.actor.from_hand and config.aux.weight == 0.0,
        "valid: aux.weight above 0, or actor.from_hand=false",
    )
    fused = config.actor.fused_heads
    yield (
        "actor.fused_heads=true with aux.weight=0 leaves no heads to put right",
        fused and config.aux.weight == 0.0,
        "valid: aux.weight above 0, or actor.fused_heads=false",
    )
    yield (
        "actor.fused_heads=true with actor.reads=features and actor.from_hand=false puts right "
        "what nothing reads",
        fused and config.actor.reads == "features" and not config.actor.from_hand,
        "valid: actor.reads=both or located, actor.from_hand=true, or actor.fused_heads=false",
    )
    yield (
        "actor.fused_heads=true with aux.after_start=true: a CNN that learns beside reinforcement "
        "would move under them",
        fused and config.aux.after_start,
        "valid: aux.after_start=false, or actor.fused_heads=false",
    )
    no_student = config.algorithm == "distill" and distill.dagger_steps == 0
    yield (
        f"distill.finetune_steps={distill.finetune_steps} with distill.dagger_steps=0 has no "
        "student to go on with",
        no_student and distill.finetuning > 0 and config.start_from is None,
        "valid: distill.dagger_steps above 0, or start_from a run, a bundle or a shipped policy",
    )
    yield (
        f"distill.teacher_run={distill.teacher_run} with distill.dagger_steps=0 and "
        f"distill.finetune_steps={distill.finetuning} leaves nothing to train",
        no_student and distill.finetuning == 0 and distill.teacher_run is not None,
        "valid: either of the two above 0",
    )
    substeps = env.control_dt / env.physics_dt
    yield (
        f"env.control_dt={env.control_dt} holds {substeps:.0f} steps of env.physics_dt="
        f"{env.physics_dt}",
        substeps > MOST_SUBSTEPS,
        f"valid: up to {MOST_SUBSTEPS}",
    )
    yield (
        f"env.control_dt={env.control_dt} is no whole number of env.physics_dt={env.physics_dt}",
        round(substeps) < 1 or abs(substeps - round(substeps)) > STEP_TOLERANCE * substeps,
        f"valid: a multiple, such as env.control_dt={max(1, round(substeps)) * env.physics_dt:g}",
    )
    yield from _camera_contradictions(camera)
    low, high = config.randomization.appearance.camera_fovy
    yield (
        f"camera.fovy={camera.fovy} with randomization.appearance.camera_fovy={show((low, high))} "
        "leaves the possible angles",
        camera.fovy + low <= 0 or camera.fovy + high >= 180,
        "valid: sums above 0 and below 180 degrees",
    )
    yield (
        f"ppo.learning_rate={ppo.learning_rate} is outside of ppo.min_learning_rate="
        f"{ppo.min_learning_rate} to ppo.max_learning_rate={ppo.max_learning_rate}",
        not ppo.min_learning_rate <= ppo.learning_rate <= ppo.max_learning_rate,
        "valid: between the two",
    )


def _camera_contradictions(camera: CameraConfig) -> Iterable[tuple[str, bool, str]]:
    yield (
        f"camera.pos and camera.lookat are the same point {show(camera.pos)}",
        camera.pos == camera.lookat,
        "valid: two points, the camera looks from the first to the second",
    )
    aside = math.dist(camera.pos[:2], camera.lookat[:2])
    yield (
        f"camera.pos={show(camera.pos)} stands straight above or below "
        f"camera.lookat={show(camera.lookat)}, where no side of the image is up",
        aside < LEAST_ASIDE,
        "valid: a little aside, such as camera.lookat="
        f"{show((camera.lookat[0], camera.lookat[1] + 0.01, camera.lookat[2]))}",
    )
