"""Every setting of a run, with its one default. Recipes are values of `Recipe` (see `wmpo.recipes`).

The defaults are those of the small machine: two CPU cores, minutes. Where the paper or its code use
another value it is noted as [paper ...]; `docs/settings.md` lists all departures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from wmpo.io.plain import FREE as FREE
from wmpo.io.plain import Between as Between

SEEDS, EPISODES, ROUNDS = Between(0, 255), Between(1, 65536), Between(1, 31)
CurvesKind = Literal["tensorboard", "wandb", "trackio"]
DIMENSIONS, STATE_DIMENSIONS = Between(1, 65536), Between(0, 65536)  # of what a saved model acts on


@dataclass(frozen=True)
class EnvConfig:
    """What every environment has; a family's own settings add to it."""

    family: str = "tabletop"
    """Which environment: tabletop (the embedded simulator), an entry point of the group wmpo.envs, or yours as
    module:Class (docs/own_env.md)."""
    workers: Annotated[int, Between(0, 256), FREE] = 2
    """Simulator processes."""
    python: Annotated[str, FREE] = ""
    """Another Python interpreter for the simulator processes, where a simulator pins what clashes with the rest; it
    needs NumPy. Empty: this one."""
    timeout: Annotated[float, Between(0.1, 1e6), FREE] = 120.0
    """Seconds that a simulator process may take for one request before it is replaced."""


@dataclass(frozen=True)
class FitConfig:
    """One supervised training."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: its updates of matrices are made orthogonal, which learns faster and costs a little more."""
    steps: Annotated[int, Between(1, 100000000)] = 1000
    """Optimiser steps."""
    batch_size: Annotated[int, Between(2, 1000000)] = 32
    """Samples per step."""
    cpu_shards: Annotated[int, Between(1, 1024)] = 1
    """Equal parts of a batch that a CPU works on side by side, a core each; the gradient is their mean. A GPU takes the
    batch whole."""
    accumulate: Annotated[int, Between(1, 1024)] = 1
    """Equal parts of a batch of which gradients are computed one after another, each in its shards: less memory.
    Several processes share the parts (docs/cluster.md)."""
    fsdp: Annotated[bool, FREE] = False
    """Of several processes each keeps only a share of the weights, their gradients, their average and the optimiser's
    state (docs/cluster.md): less memory, and changes what is learned by nothing but rounding."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward pass; weights, their average and the optimiser's state are float32 either way.
    auto: bfloat16 where the machine has units for it. A denoiser goes by `world_model.precision`."""
    lr: Annotated[float, Between(1e-12, 100)] = 1e-3
    """Peak learning rate; linear warm-up, then cosine decay to a tenth."""
    warmup: Annotated[int, Between(0, 100000000)] = 50
    """Steps of linear warm-up."""
    weight_decay: Annotated[float, Between(0, 100)] = 0.0
    """Decoupled weight decay."""
    grad_clip: Annotated[float, Between(1e-9, 1e9)] = 1.0
    """Largest gradient norm. [paper 0.1, code 1.0]"""
    ema: Annotated[float, Between(0, 0.999999)] = 0.0
    """Decay of the exponential moving average of the weights; 0 turns it off. [paper 0.9999, code 0.99]"""


@dataclass(frozen=True)
class DemonstrationConfig:
    data: str = ""
    """Folder of an episode store of yours, such as `wmpo data import` makes, all of whose demonstrations are copied
    into the run in place of a scripted expert's: the next three settings do nothing then."""
    episodes: Annotated[int, EPISODES] = 100
    """Successful scripted demonstrations that the base policy imitates. [paper 300]"""
    noise: Annotated[float, Between(0, 100)] = 0.6
    """Largest spread of the noise on the executed actions: each episode's is drawn between 0 and this, so that policy
    and dream see states off the path. The clean action is the label."""
    min_pace: Annotated[float, Between(0.01, 1)] = 1.0
    """Demonstrators may differ in pace: each episode's is drawn between this and 1, the fastest. They take the time
    they need; a policy that dawdles as they do runs out of it."""
    failures: bool = False
    """Dream and reward model learn from the attempts that failed, too; the policy imitates successes only. Without,
    they meet failure in the policy's own rollouts. [paper: no]"""


@dataclass(frozen=True)
class PolicyConfig:
    """What every policy has; a family's own settings add to it."""

    family: str = "minivla"
    """Which policy is built from scratch: minivla, an entry point of the group wmpo.policies, or yours as module:Class
    (docs/own_policy.md)."""
    pretrained: str = ""
    """Folder of a policy to begin from, of any family, a published SmolVLA or pi0 among them; empty: one from
    scratch."""
    chunk: Annotated[int, Between(1, 1024)] = 4
    """K: actions decided at once. [paper 8]"""
    shift: Annotated[int, Between(0, 1024)] = 4
    """Training images are moved by up to so many pixels, at random."""
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=600, batch_size=128, cpu_shards=2, lr=2e-3)
    )
    """Supervised training on the demonstrations."""


@dataclass(frozen=True)
class CollectConfig:
    episodes: Annotated[int, Between(0, 65536)] = 128
    """P: real rollouts of the current policy, the whole budget of real interaction. 0: dream and reward model learn
    from the demonstrations alone. [paper 128, 1280]"""
    rollouts_per_state: Annotated[int, Between(1, 65536)] = 1
    """Of each initial state. Preferences (DPO) need a success beside a failure from one state, hence several."""
    temperature: Annotated[float, Between(0, 1000)] = 0.5
    """Sampling temperature of the policy while collecting: what it does there is what it will do in practice."""
    task: str = ""
    """Of an environment with several tasks, the one to try and to practise, or several joined by +; the others are only
    evaluated, which shows what is forgotten. Empty: all."""


@dataclass(frozen=True)
class WorldModelConfig:
    """What every world model has; a family's own settings add to it."""

    family: str = "video_diffusion"
    """Which world model: video_diffusion, an entry point of the group wmpo.world_models, or yours as module:Class
    (docs/own_world_model.md)."""
    align_fraction: Annotated[float, Between(0, 1)] = 0.5
    """Share of each alignment batch drawn from the policy's own rollouts."""
    shift: Annotated[int, Between(0, 1024)] = 4
    """Training clips are moved by up to so many pixels, at random, all frames alike. [paper: no]"""


@dataclass(frozen=True)
class RewardConfig:
    """What every reward model has; a family's own settings add to it."""

    family: str = "conv"
    """Which success classifier: conv (small), videomae, an entry point of the group wmpo.reward_models, or yours as
    module:Class (docs/own_reward_model.md). [paper: videomae]"""
    clip_length: Annotated[int, Between(1, 1024)] = 4
    """L: frames per clip. [paper 8]"""
    shift: Annotated[int, Between(0, 1024)] = 4
    """Training clips are moved by up to so many pixels, at random, all frames alike. [paper: no]"""
    stride: Annotated[int, Between(1, 1024)] = 2
    """Frames between the ends of scored clips, counted back from the end of a chunk. [paper 1]"""
    threshold: Literal["calibrated", "f1", "rate", "half"] = "calibrated"
    """The score above which a clip counts as success. calibrated: where success is as likely as failure, in imagined
    replays of real episodes, each judged by a classifier that was trained on others; f1: the best F1 on the same
    replays; rate: such that the policy succeeds in the dream as often as it did for real; half: such that half of the
    dreams succeed, whatever is true, to try things out with a policy that never succeeds. [paper: f1, on real clips]"""
    imagined_fraction: Annotated[float, Between(0, 1)] = 0.5
    """Share of each batch taken from imagined replays of real episodes, labelled by what really happened: the
    classifier judges dreams, so it should have seen some. [paper: 0]"""
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=400, batch_size=64, cpu_shards=2))
    """Training on balanced clips. [paper lr 1e-4]"""


@dataclass(frozen=True)
class SelfImitationConfig:
    """Before it practises the policy goes on imitating, as `policy.fit` says: the demonstrations and its own successful
    rollouts, in which there are second attempts, that no expert shows."""

    steps: Annotated[int, Between(0, 100000000)] = 400
    """Optimiser steps, in each round; 0: none. [paper: none]"""
    lr_factor: Annotated[float, Between(1e-9, 100)] = 0.15
    """Peak learning rate, as a part of policy.fit.lr."""


@dataclass(frozen=True)
class GRPOConfig:
    iterations: Annotated[int, Between(0, 1000000)] = 20
    """Policy iterations: imagine groups, then a few clipped updates."""
    groups: Annotated[int, Between(1, 65536)] = 40
    """Informative groups per iteration. [paper 64]"""
    group_size: Annotated[int, Between(2, 65536)] = 8
    """G: imagined rollouts from one initial frame. [paper 8]"""
    shards: Annotated[int, Between(1, 65536)] = 1
    """Equal parts of the groups that are imagined one after another, with random numbers of their own: what several
    processes share (docs/cluster.md)."""
    n_initial_states: Annotated[int, Between(0, 65536)] = 256
    """Fresh initial frames to practise from (resets of the real environment, no actions), beside those of the
    demonstrations and rollouts, which are there anyway."""
    keyframes: Annotated[int, Between(0, 65536)] = 0
    """Also practise from so many frames of the middle of the policy's own real rollouts, where success is nearer and
    what matters is easier to tell. [paper: 0]"""
    lr: Annotated[float, Between(1e-12, 100)] = 3e-4
    """AdamW learning rate. [paper 5e-6, 7B parameters]"""
    lr_end: Annotated[float, Between(0, 1)] = 1.0
    """After the warm-up it falls linearly to this part of itself, at the last iteration. [paper: constant]"""
    freeze: tuple[str, ...] = ()
    """Parts of the policy that practice leaves alone, by the beginnings of their parameters' names."""
    warmup: Annotated[int, Between(0, 1000000)] = 8
    """Optimiser steps of linear warm-up: Adam's first steps are as large as any, and mostly noise. [paper: none]"""
    minibatches: Annotated[int, Between(1, 1000000)] = 4
    """Optimiser steps in a pass over the batch. [paper 4]"""
    epochs: Annotated[int, Between(1, 1000)] = 1
    """Passes over the batch of an iteration. [paper 1]"""
    micro_batch: Annotated[int, Between(1, 1000000), FREE] = 32
    """Episodes of which gradients are computed at once, by a GPU or by each core of a CPU; they add up to that of the
    mini-batch. Less takes less memory, and changes what is learned by nothing but rounding."""
    clip_low: Annotated[float, Between(0, 1)] = 0.20
    """The ratio is clipped below 1 - clip_low. [paper 0.20]"""
    clip_high: Annotated[float, Between(0, 100)] = 0.28
    """The ratio is clipped above 1 + clip_high. [paper 0.28]"""
    ratio: Literal["chunk", "token"] = "token"
    """Probability ratio of the whole chunk (paper) or of each token (code)."""
    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    """grpo: reward minus the group's mean, over its spread; dr_grpo: without that division, nor one by the episode's
    length; rloo: reward minus the mean of the others."""
    temperature: Annotated[float, Between(1e-3, 1000)] = 0.5
    """Sampling temperature, used for log-probabilities too. A small policy that samples at 1 fails of its dice, and its
    practice is spent on fighting them. [paper 1.6]"""
    grad_clip: Annotated[float, Between(1e-9, 1e9)] = 1.0
    """Largest gradient norm. [paper 1]"""
    min_group_success: Annotated[float, Between(0, 1)] = 0.1
    """Dynamic sampling: groups with a mean success below this are skipped. [paper: above 0; code 0.1]"""
    max_group_success: Annotated[float, Between(0, 1)] = 0.9
    """Dynamic sampling: groups with a mean success above this are skipped. [paper: below 1; code 0.9]"""
    max_resamples: Annotated[int, Between(0, 1000)] = 0
    """Dynamic sampling: how many times a batch that came out short is refilled; 0 turns refilling off."""
    ema: Annotated[float, Between(0, 0.999999)] = 0.75
    """Decay, per iteration, of the moving average of the weights that practice hands on; 0: those of its last
    iteration. [paper: none]"""
    target_kl: Annotated[float, Between(0, 1e6)] = 0.0
    """The stop rule: practice ends once the policy is so far from where it began, the policy that the dream was aligned
    on: KL divergence of its choices from those, in nats per chunk. 0: only `iterations` end it. [paper: none]"""
    kl_coef: Annotated[float, Between(0, 1e6)] = 0.0
    """Weight of a penalty on the distance from the policy that practice began with: an estimate of the KL divergence
    per action from it (k3, arXiv 2402.03300, eq. 4). [paper: none]"""
    imitation_coef: Annotated[float, Between(0, 1e6)] = 0.0
    """Weight of the imitation loss on real frames, the demonstrations' and those of the policy's own successful
    rollouts, beside the loss on imagined ones: it holds the policy to what is known to work (DAPG, arXiv 1709.10087).
    [paper: none]"""
    imitation_batch: Annotated[int, Between(1, 1000000)] = 64
    """Real frames of an optimiser step that are imitated."""
    shuffle_rewards: bool = False
    """Control experiment: permute rewards inside each group, so that they say nothing."""


@dataclass(frozen=True)
class EvaluateConfig:
    episodes: Annotated[int, EPISODES] = 256
    """Real episodes from held-out initial states, the same ones for every policy. [paper 128]"""
    temperature: Annotated[float, Between(0, 1000)] = 0.0
    """0: greedy."""
    time_factor: Annotated[float, Between(1, 100)] = 2.0
    """Episodes of the evaluation may go on for so many horizons, so that success is seen against the number of steps.
    What counts as success is what is done within the horizon."""
    practice_eval_freq: Annotated[int, Between(0, 1000000)] = 10
    """Also measure the practising policy for real every so many iterations, for the report's curve; 0: never."""
    practice_eval_episodes: Annotated[int, EPISODES] = 64
    """Episodes of each such measurement; their initial states are used for nothing else."""


@dataclass(frozen=True)
class Recipe:
    """One whole run: demonstrations, base policy, collection, world model, reward model, imagination, evaluation."""

    name: str = "push"
    """What the run is called in its report and in the name of its folder; no number depends on it."""
    seed: Annotated[int, SEEDS] = 0
    """One seed, from 0 to 255, gives one result on one machine."""
    rounds: Annotated[int, ROUNDS] = 1
    """Lifelong learning: how often to collect, align and practise."""
    rounds_from_base: bool = False
    """Each round practises anew from the base policy, on what the rollouts of all rounds have taught dream and reward
    model, in place of going on with the policy of the round before (as STaR, arXiv 2203.14465, and ReST-EM, arXiv
    2312.06585, go back). [paper: no]"""
    rounds_while: Literal["not_worse", "better"] = "not_worse"
    """When rounds end early. not_worse: once a round's rollouts succeed less often than those of the round
    before, beyond chance (5 %, one side); better: once they don't succeed more often, beyond chance. The policy whose
    rollouts succeeded more often is the result then. The paper's rounds always go on."""
    control: bool = True
    """Also practise with rewards shuffled inside each group; the honest control costs one more practice."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    curves: Annotated[CurvesKind, FREE] = "tensorboard"
    """Where the numbers of its trainings are shown as they come: tensorboard; wandb (Weights & Biases), or trackio,
    which need an extra each. They stand in metrics.jsonl anyway, and nothing depends on it."""
    env: EnvConfig = field(default_factory=EnvConfig)
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    self_imitation: SelfImitationConfig = field(default_factory=SelfImitationConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
