"""Every setting of a run and its default, as frozen dataclasses; no inheritance, no eval.

Knows nothing of torch, MuJoCo or any other module of the package. Units stand in the comments;
"tuned" names what against. `key=value` overrides with dots for groups (`ppo.gamma=0.98`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

Range = tuple[float, float]

# Standard deviation of the widest blur, pixels: a pixel then gives away half of itself an axis.
MOST_BLUR = 0.7
MOST_CLUTTER = 4  # things about the workspace


@dataclass(frozen=True)
class EnvConfig:
    episode_steps: int | None = None  # control steps; None: the task's own length
    control_dt: float = 0.05  # s; 20 Hz (Zhu et al. 2018)
    physics_dt: float = 0.01  # s; half the rate of 0.005 at equal grasp success, twice the speed
    num_threads: int = 0  # 0: every core this process may use


@dataclass(frozen=True)
class CameraConfig:
    height: int = 64  # pixels
    width: int = 64  # pixels
    # In front of the arm and looking down by 54 degrees: from a lower place (33 degrees) a block's
    # distance shows half as well, and policies missed blocks in depth alone.
    pos: tuple[float, float, float] = (0.0, -0.51, 0.79)  # m, world frame
    lookat: tuple[float, float, float] = (0.0, 0.02, 0.08)  # m, world frame
    fovy: float = 30.0  # degrees, vertical: workspace and hand fill the image, a block is 6 pixels
    period: int = 4  # control steps between frames; 4 = 5 Hz, the real system's rate
    shadows: bool = False  # ray-cast shadows: by MuJoCo Warp's own kernel, which is slower on a CPU


@dataclass(frozen=True)
class AppearanceConfig:
    """Ranges at strength 1; every factor is drawn per world and per episode."""

    enabled: bool = True  # false: every appearance nominal
    # What a calibrated mount may be off by, and more; 1 degree moves the image of the table by
    # 1.5 cm.
    camera_pos: Range = (-0.01, 0.01)  # m, added to each axis
    camera_rotation: Range = (-1.0, 1.0)  # degrees, about each of the camera's axes
    camera_fovy: Range = (-1.0, 1.0)  # degrees, added
    num_lights: tuple[int, int] = (1, 3)  # lights switched on
    light_pos: Range = (-0.6, 0.6)  # m, added to each axis
    light_direction: Range = (-20.0, 20.0)  # degrees, tilt about world x and y
    light_colour: Range = (0.7, 1.3)  # scale, each colour channel
    arm_colour: Range = (-0.12, 0.12)  # added to each colour channel (0-1)
    prop_colour: Range = (-0.12, 0.12)  # added to each colour channel (0-1)
    table_colour: Range = (-0.25, 0.25)  # added to each colour channel (0-1)
    floor_colour: Range = (-0.3, 0.3)  # added to each colour channel (0-1)
    textures: bool = True  # choose the texture of table, floor, arm and blocks
    texture_repeat: Range = (0.5, 2.0)  # scale of the texture's repetitions, log-uniform
    brightness: Range = (0.8, 1.25)  # factor, torchvision adjust_brightness
    contrast: Range = (0.8, 1.25)  # factor, torchvision adjust_contrast
    # Share of the light that is missing in patches with sharp edges, as shadows have them.
    shade: Range = (0.0, 0.0)
    # Standard deviation in pixels by which light spreads, as through a lens: a real camera's image
    # that is averaged down to the policy's size has soft edges, a ray-cast one has not.
    blur: Range = (0.0, 0.0)
    # Share of the first light, its ambient part too, that does not reach what lies in the shadow of
    # something, by rays to it; where it is not above 0, nothing casts a shadow. An image with
    # shadows takes about twice the time.
    cast_shadow: Range = (-1.0, 1.0)
    # Rounded things about the workspace that are seen and never touched, as they lie about on a
    # real table. Where the most is 0 the scene has none.
    clutter: tuple[int, int] = (0, 0)
    hue: Range = (-0.03, 0.03)  # turns of the hue circle, torchvision adjust_hue
    pixel_noise: Range = (0.0, 5.0)  # half width of uniform noise per channel, of 255


@dataclass(frozen=True)
class DynamicsConfig:
    """Ranges at strength 1; every factor is drawn per world and per episode."""

    enabled: bool = True  # false: all dynamics nominal
    prop_friction: Range = (0.7, 1.3)  # scale of sliding, torsional and rolling friction
    prop_mass: Range = (0.5, 2.0)  # scale of mass and inertia, log-uniform
    prop_inertia: Range = (0.8, 1.25)  # further scale of the inertia alone, log-uniform
    prop_size: Range = (0.95, 1.05)  # scale of the edge lengths
    joint_damping: Range = (0.5, 2.0)  # scale, log-uniform, per joint
    joint_armature: Range = (0.8, 1.25)  # scale, log-uniform, per joint
    joint_friction: Range = (0.7, 1.4)  # scale of frictionloss, log-uniform, per joint
    actuator_gain: Range = (0.8, 1.25)  # scale of the velocity gain, log-uniform, per joint
    gravity_tilt: Range = (-1.5, 1.5)  # degrees about world x and y


@dataclass(frozen=True)
class LatencyConfig:
    enabled: bool = True  # false: no delays, drops or noise of proprioception
    camera_delay: tuple[int, int] = (0, 2)  # control steps from exposure to use, per episode
    action_delay: tuple[int, int] = (0, 1)  # control steps from decision to execution, per episode
    action_drop: Range = (0.0, 0.2)  # probability that a new action is dropped, per episode
    proprio_noise: Range = (0.0, 0.01)  # standard deviation, per episode (paper: 0.01)


@dataclass(frozen=True)
class RandomizationConfig:
    strength: float = 1.0  # 0: everything at its default, 1: the full ranges
    curriculum_steps: int = 0  # env steps of a run over which strength grows from 0; 0: at once
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)


@dataclass(frozen=True)
class ActorConfig:
    recurrent: bool = True  # False: a feed-forward layer in place of the LSTM
    # compact, keypoints: spatial softmax; maps: compact, and at every place of the image what is
    # there, for scenes with several things of a kind; wide_maps: that with more channels, at 1.6
    # times the time; flat: the paper's CNN
    encoder: str = "compact"
    # What the policy reads of an image: the CNN's features (the paper's), where the auxiliary heads
    # see things (located), or both.
    reads: str = "both"
    # Whether it also reads how far these things are from its hand, as the joints tell where that is
    # now: a picture is up to 0.25 s old.
    from_hand: bool = False
    # Whether what the heads see is put right by what the joints tell before the policy reads it: a
    # picture does not say where its camera stands, the hand that it shows does.
    fused_heads: bool = False
    visual_dim: int = 128  # output of the CNN
    proprio_dim: int = 64  # output of the proprioception MLP
    hidden_dim: int = 128  # LSTM units (paper: 100)
    # Exploration; little, since noise costs much where frames come at 5 Hz: with twice as much
    # lifting ended at 94.2 % of 500 episodes after it had begun reinforcement at 97 %.
    init_log_std_arm: float = -2.5  # of the arm's actions: std 0.08
    init_log_std_finger: float = -1.6  # of the fingers': std 0.2
    min_std_arm: float = 0.04  # deviation of the arm's actions below which it does not fall
    min_std_finger: float = 0.1  # the same of the fingers


@dataclass(frozen=True)
class CriticConfig:
    hidden_sizes: tuple[int, ...] = (256, 256)  # layers of its MLP, with ELU


@dataclass(frozen=True)
class GailConfig:
    weight: float = 0.5  # lambda of the mixed reward (paper: 0.5)
    reward: str = "gail"  # gail: -log(1 - D); log_d: log D; airl: log D - log(1 - D)
    clip: float = 10.0  # largest imitation reward (paper)
    scale: float = 0.1  # imitation reward times this before mixing: brings it to the task's 0-1
    learning_rate: float = 3e-4  # Adam, of the discriminator
    updates: int = 8  # discriminator steps per iteration
    batch_size: int = 1024  # steps of each class per discriminator step
    hidden_sizes: tuple[int, ...] = (100, 64)  # layers of the discriminator, with tanh (paper)
    gradient_penalty: float = 0.0  # weight; 0: none


@dataclass(frozen=True)
class AuxConfig:
    weight: float = 0.5  # 0: no auxiliary losses
    hidden_sizes: tuple[int, ...] = (200, 100)  # layers of the heads' MLP, with ELU (paper)
    # Before anything acts the CNN learns to see, on start states and demonstration states.
    start_frames: int = 12_288
    start_updates: int = 3000  # Adam steps, batch_size frames each; 0: none
    # Of distill: in each iteration so many states just met are seen anew, each in an appearance of
    # its own, and every minibatch has `replayed` batches of such frames beside it; 0: none. An
    # episode has one appearance; of episodes of 500 steps a run meets too few to see through them.
    scattered: int = 256
    # Whether the CNN goes on learning in ril's reinforcement after a clone's labels or start_from.
    # With that, more noise and fewer labels stacking ended at 368 of 500 episodes, without at 419.
    after_start: bool = False
    # After every update of ril in which the CNN learns: a pass over the rollout and older frames,
    # with the policy held. Groups of frames, each beside replayed batches of older ones.
    minibatches: int = 6
    replayed: int = 1  # batches of older frames beside each group
    batch_size: int = 128  # frames
    memory: int = 12_288  # frames kept
    learning_rate: float = 5e-4  # Adam, of CNN and heads
    hold: float = 0.1  # of what the policy reads of an image: the squared drift of its reading


@dataclass(frozen=True)
class PPOConfig:
    num_steps: int = 32  # steps per world and iteration, also the truncation of BPTT (paper: 50)
    epochs: int = 3  # passes over each rollout
    # The last so many of them also train a pixel actor's CNN; null: none where auxiliary losses do.
    encoder_epochs: int | None = None
    minibatches: int = 4  # groups of whole worlds
    gamma: float = 0.98  # discount per control step
    gae_lambda: float = 0.95  # lambda of generalized advantage estimation
    clip_coef: float = 0.2  # epsilon of the clipped surrogate
    value_clip: float | None = None  # largest change of a value that counts; null: any
    ent_coef: float = 0.0  # weight of the entropy; 0: none
    learning_rate: float = 1e-4  # Adam, at first: a larger first step undoes the cloning start
    max_learning_rate: float = 1e-3  # how far target_kl may raise it
    min_learning_rate: float = 3e-6  # how far target_kl may lower it
    critic_learning_rate: float = 1e-3  # Adam
    target_kl: float = 0.01  # the step size adapts towards it; 0: fixed
    anneal_fraction: float = 0.33  # last share of the run over which the step size falls to 0
    # Share of the policy's deviation that is left at the end of the run: of a teacher, and of ril
    # from nothing; elsewhere distill.finetune_noise holds all through.
    final_noise: float = 0.5
    noise_anneal_fraction: float = 0.5  # last share of the run over which it falls to that
    max_grad_norm: float = 0.5  # longer gradients are cut to this norm
    mean_penalty: float = 0.01  # weight of the penalty on action means beyond 1
    critic_warmup: int = 8  # first iterations that train the value alone


@dataclass(frozen=True)
class CurriculumConfig:
    enabled: bool = True  # start episodes from demonstration states
    initial_share: float = 0.3  # epsilon at first: share of starts from the initial distribution
    final_share: float = 0.7  # epsilon once the policy succeeds from there
    by_stage: float = 0.5  # share of demonstration starts drawn stage first; rest uniform in time


@dataclass(frozen=True)
class CloningConfig:
    # False: no actions of demonstrations are used (the paper's own setting), nor retargeted ones.
    enabled: bool = True
    # A network of the state is cloned from the demonstrations: a teacher before it is reinforced,
    # or the expert of a pixel actor, which images of thirty episodes would not teach to see.
    start_updates: int = 5000  # Adam steps: a minute or two
    # Env steps of ril in which the clone labels, before reinforcement; START_SHARE of all at most.
    start_steps: int = 400_000
    learning_rate: float = 1e-3  # Adam, of the clone
    # Whether a clone sees how fast arm and props move. One that does goes on with what it is doing,
    # and stands still where it is held up: after 0.2 M steps stacking's student had 30 % with, 63 %
    # without; but pouring's learned more with: docs/findings.md, "Teachers that repeated their own
    # pace".
    sees_velocities: bool = False
    weight: float = 0.2  # of a teacher's cloning term in the loss at the start of the run ...
    final_weight: float = 0.1  # ... and after decay_steps
    decay_steps: int = 1_000_000  # env steps from weight to final_weight
    # Weight of the cloning term of a pixel actor, whose labels are the clone's and cover all of its
    # own states: 0.5 held lifting at the clone's 70 %, 0.05 let it reach 90 % after 75,000 steps of
    # reinforcement.
    label_weight: float = 0.05
    # That weight in the end: with 0 stacking rose to 82 % and fell back to 70, with 0.01 it ended
    # with 84.
    final_label_weight: float = 0.01
    label_decay_steps: int = 300_000  # env steps from label_weight to final_label_weight


FINETUNE_STEPS = 500_000  # of a distilled student, where distill.finetune_steps does not say


@dataclass(frozen=True)
class TeacherConfig:
    total_steps: int = 300_000  # env steps of the state teacher; what follows no longer helps
    # The teacher is done when so many of its last 200 episodes from the initial distribution
    # succeed, with its exploration noise, or, before any reinforcement, of run.final_episodes of
    # its clone, without: a clone's labels are the easier ones to follow (docs/findings.md). null:
    # only after total_steps.
    enough_success: float | None = 0.9
    num_envs: int = 128  # worlds while a teacher learns
    # Control steps after which its training episodes end, where the task's own are longer: of these
    # it would meet few, and each of them alike for long. The value goes on behind the end.
    episode_steps: int | None = None
    hidden_sizes: tuple[int, ...] = (256, 256)  # layers of its MLP, with ELU
    # Exploration, tuned on stacking: of a clone that stacked 87 % there was 80 % left with this,
    # 64 % with twice as much, and what is learned under the larger noise is lost without it.
    init_log_std_arm: float = -2.5  # of the arm's actions: std 0.08
    init_log_std_finger: float = -1.6  # of the fingers': std 0.2
    min_std_arm: float = 0.05  # deviation of the arm's actions below which it does not fall
    min_std_finger: float = 0.1  # the same of the fingers


@dataclass(frozen=True)
class DistillConfig:
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teacher_run: str | None = None  # a finished teacher's run or a shipped one's task: no training
    dagger_steps: int = 800_000  # env steps of the student under its labels; 0: a teacher only
    learning_rate: float = 7e-4  # Adam, of the student
    # Step size of the CNN and the heads, which then learn from the auxiliary losses alone; null: as
    # all else.
    # order_fulfillment's student had 8.5 % of its training episodes, and 17 % 0.25 M steps later.
    vision_learning_rate: float | None = None
    # Last share of the run over which the step size falls to 0. Much is gained only then:
    # clearing_blocks' student went from 22 to 55 % of 64 episodes within 0.2 M steps of it.
    anneal_fraction: float = 1.0
    # How errors from the fingers' labels count: squared, or linear, under which nothing lies
    # between hold and let go.
    finger_loss: str = "linear"
    teacher_share: float = 0.5  # share of worlds in which the teacher acts at first ...
    # ... and in the end. Without any, pouring's student fell from 61 to 34 % within 0.2 M steps: it
    # then sees little but its own failures.
    final_teacher_share: float = 0.2
    action_noise: float = 0.1  # standard deviation added to actions: states to recover from ...
    # ... in this share of worlds. Where all have it a policy is never seen to act without, as it is
    # judged: pouring's student had 58 % of its training episodes and 31 % of 64 without the noise.
    noisy_share: float = 0.5
    # Env steps in which the teacher goes on learning beside its student, from states that the
    # student came to; 0: it is finished.
    rehearsal_steps: int = 0
    minibatches: int = 8  # groups of whole worlds in a pass over a rollout
    epochs: int = 1  # passes over each rollout when it is fresh
    replayed: int = 5  # older rollouts fitted again beside every fresh one; rendering costs more
    # Whether the CNN learns from these, too, and not from the fresh one and scattered frames alone:
    # stacking's students were no better for it by env steps, at three quarters of the speed.
    replays_train_encoder: bool = False
    memory: int = 24  # rollouts kept
    # Env steps of PPO + GAIL from pixels afterwards, with the teacher's critic and discriminator;
    # null: FINETUNE_STEPS after a student's dagger_steps that has not enough_success, else 0. The
    # CNN stays as it is: pouring's student went from 72 to 94 % so, stacking's from 77 to 87 %;
    # another fell from 91 to 71 % while the auxiliary phase went on.
    finetune_steps: int | None = None
    # A student that succeeds in so many of run.final_episodes when its steps are done, judged
    # without noise, is left as it is where finetune_steps is null: what follows a clone to 95 % has
    # nothing to gain from PPO, and lost 2 to 4 points by it (stacking). null: none is.
    enough_success: float | None = 0.9
    # Share of the student's deviation that it then acts with, in ril after its start or start_from,
    # too. It is judged without: under all of it clearing_blocks' fell from 80 to 53 %, while with
    # the noise it got better.
    finetune_noise: float = 0.3
    # Weight of the teacher's labels, which hold the student to what it does well. Without them, at
    # half the noise, clearing_blocks' fell from 91 to 64 % within 0.12 M steps; with them it held
    # for 0.24 M and then fell as well (docs/findings.md).
    finetune_label_weight: float = 0.01

    @property
    def finetuning(self) -> int:
        """Env steps of PPO + GAIL from pixels after a student that has not enough_success."""
        if self.finetune_steps is not None:
            return self.finetune_steps
        return FINETUNE_STEPS if self.dagger_steps > 0 else 0


@dataclass(frozen=True)
class RunConfig:
    checkpoint_seconds: float = 120.0  # s, between checkpoints
    keep_checkpoints: int = 3  # the newest so many
    evaluate_every: int = 500_000  # env steps between evaluations in the run; 0: none
    evaluate_episodes: int = 64  # in each of them
    final_episodes: int = 200  # of the evaluation at the end; 0: none
    tensorboard: bool = True  # write TensorBoard events into the run folder


START_SHARE = 0.4  # of ril's total_steps at most is spent on its start


@dataclass(frozen=True)
class Config:
    # What a run's config.yaml names in any case: a file without is a damaged one. The last is the
    # last that every one of them has, so that none that was cut short reads as defaults.
    NAMED: ClassVar[tuple[str, ...]] = ("task", "algorithm", "run.tensorboard")
    # Settings that came later and are on by default: what they are in a run's config.yaml that
    # leaves them out, since it was trained without.
    ABSENT: ClassVar[dict[str, Any]] = {
        "averaging_steps": 0,
        "randomization.appearance.cast_shadow": [0.0, 0.0],
        "distill.replays_train_encoder": True,
        "distill.enough_success": None,
        "aux.after_start": True,
    }

    task: str = "stacking"  # its name (docs/tasks.md)
    algorithm: str = "ril"  # ril: PPO + GAIL from pixels; distill: state teacher, DAgger, PPO
    seed: int = 0  # of the whole run
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    num_envs: int = 128  # worlds that are simulated side by side
    total_steps: int = 1_000_000  # env steps of ril
    # Env steps over which the pixel actor's weights are averaged, newest most; the mean is what is
    # judged, handed on and kept, and never acts in training. 0: the newest weights. A student under
    # DAgger has valleys of 10 points and more, its mean none (stacking; docs/findings.md).
    averaging_steps: int = 40_000
    demonstrations: str | None = None  # HDF5 file; None: made on first use and cached
    # More demonstrations out of these: their motions carried over to other starts, where that
    # succeeds, and copies of all of them turned about the arm's base, in which physics sees no
    # difference. From 30 demonstrations a clone stacks 30 % of randomized worlds without either,
    # 46 % with 15 turned copies of each (512 episodes each, as they were made then), 97 % with 800
    # retargeted ones and a turned copy of each (768).
    retargeted: int = 800  # how many are carried over; 0: none
    turned_copies: int = 1  # of each demonstration, retargeted ones too; 0: none
    # A run, a bundle with weights or a shipped policy: this run begins with its pixel actor, in the
    # place of a vision start and a cloning start.
    start_from: str | None = None
    # A camera file of visuomotor.calibrate, in the place of camera.pos, camera.lookat, camera.fovy.
    calibration: str | None = None
    out: str | None = None  # run folder; None: runs/<task>-<algorithm>-seed<seed>-<time>
    env: EnvConfig = field(default_factory=EnvConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    randomization: RandomizationConfig = field(default_factory=RandomizationConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    gail: GailConfig = field(default_factory=GailConfig)
    aux: AuxConfig = field(default_factory=AuxConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    cloning: CloningConfig = field(default_factory=CloningConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def starting(self) -> int:
        """Env steps of ril under a clone's labels, before reinforcement; of demonstrations that
        have actions."""
        if not self.cloning.enabled or self.start_from is not None:
            return 0
        return min(self.cloning.start_steps, int(START_SHARE * self.total_steps))
