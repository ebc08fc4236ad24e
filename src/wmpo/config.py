"""Every setting of a run, with its one default. Recipes are values of `Recipe` (see `wmpo.recipes`).

The defaults are those of the small machine: two CPU cores, minutes. Where the paper or its code use
another value it is noted as [paper ...]; `docs/settings.md` lists all departures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class EnvConfig:
    task: str = "push"
    """Which task to learn, or several joined by +, told apart by their sentences; `wmpo tasks` lists them."""
    cameras: tuple[str, ...] = ("front",)
    """Cameras that the policy sees, and that dreams show: front, wrist. The reward model watches the first one."""
    image_size: int = 64
    """Height and width of each camera, in pixels. [paper 256]"""
    state: bool = True
    """The policy feels the gripper's position and opening too, and the dream imagines them. [paper: no]"""
    renderer: Literal["auto", "egl", "rays"] = "auto"
    """egl: OpenGL without a screen; rays: MuJoCo's own ray casting, needs no graphics; auto: egl where it works."""
    workers: int = 2
    """Simulator processes."""


@dataclass(frozen=True)
class FitConfig:
    """One supervised training."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: its updates of matrices are made orthogonal, which learns faster and costs a little more."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 32
    """Samples per step."""
    cpu_shards: int = 1
    """Equal parts of a batch that a CPU works on side by side, a core each; the gradient is their mean. A GPU takes the
    batch whole."""
    lr: float = 1e-3
    """Peak learning rate; linear warm-up, then cosine decay to a tenth."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest gradient norm. [paper 0.1, code 1.0]"""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights; 0 turns it off. [paper 0.9999, code 0.99]"""


@dataclass(frozen=True)
class DemonstrationConfig:
    episodes: int = 500
    """Successful scripted demonstrations that the base policy imitates. [paper 300]"""
    noise: float = 0.6
    """Largest spread of the noise on the executed actions: each episode's is drawn between 0 and this, so that some
    demonstrators are clumsy and the dream sees what comes of it. The clean action is the label."""
    min_pace: float = 0.5
    """Demonstrators differ in pace: each episode's is drawn between this and 1, the fastest. They take the
    time they need; a policy that dawdles as they do runs out of it."""


@dataclass(frozen=True)
class FlowConfig:
    """How a flow-matching policy turns noise into actions."""

    steps: int = 4
    """Denoising steps. [pi0 and SmolVLA 10]"""
    noise: Literal["sde", "learned"] = "sde"
    """Noise on the way, to explore. sde: Flow-SDE, which keeps the distribution of actions; learned: Flow-Noise, as
    wide as a small network says."""
    level: float = 0.5
    """Strength of that noise, times the temperature; at temperature 0 there is none."""


@dataclass(frozen=True)
class PolicyConfig:
    pretrained: str = ""
    """Folder of a policy to begin from, of any family, a published SmolVLA or pi0 among them; empty: one from
    scratch."""
    family: str = "minivla"
    """Whose policy is built from scratch: minivla, to which most settings here belong, or one of yours
    (docs/own_policy.md)."""
    chunk: int = 4
    """K: actions decided at once. [paper 8]"""
    head: Literal["tokens", "flow"] = "tokens"
    """tokens: a bin is chosen for each action dimension; flow: actions are denoised, as in pi0 and SmolVLA.
    [paper: tokens]"""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """Denoising, with the flow head."""
    bins: int = 33
    """Bins per action dimension, with the token head. [paper 256]"""
    width: int = 48
    """Channels of the image encoder."""
    hidden: int = 256
    """Width of the action decoder."""
    sentences: Literal["small", "minilm"] = "small"
    """What reads the instruction. small: an encoder that is trained with the policy, and knows the words that it was
    trained on; minilm: the pretrained all-MiniLM-L6-v2, frozen, and a trained projection (docs/language.md).
    [paper: the policy is a language model]"""
    shift: int = 4
    """Training images are moved by up to so many pixels, at random."""
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=600, batch_size=128, cpu_shards=2, lr=2e-3)
    )
    """Supervised training on the demonstrations."""


@dataclass(frozen=True)
class CollectConfig:
    episodes: int = 128
    """P: real rollouts of the current policy, the whole budget of real interaction. [paper 128, 1280]"""
    held_out: float = 0.25
    """Share of them kept out of training: thresholds are chosen and fidelity is measured on it."""
    temperature: float = 0.5
    """Sampling temperature of the policy while collecting: what it does there is what it will do in practice."""
    task: str = ""
    """Of an environment with several tasks, the one to try and to practise, or several joined by +; the others are only
    evaluated, which shows what is forgotten. Empty: all."""


@dataclass(frozen=True)
class WorldModelConfig:
    backbone: Literal["unet", "transformer"] = "unet"
    """The denoiser: a convolutional U-Net (small machines) or the paper's space-time transformer."""
    codec: Literal["pixels", "autoencoder", "diffusers"] = "pixels"
    """What is denoised: pixels in patches, latents of a small autoencoder trained here, or those of a diffusers
    AutoencoderKL from a local folder. [paper: SDXL VAE]"""
    codec_path: str = ""
    """Folder of the diffusers autoencoder."""
    codec_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=600, batch_size=32, lr=2e-3))
    """Training of the small autoencoder."""
    context: int = 2
    """c: frames of history given to the denoiser. [paper 4]"""
    anchor: bool = True
    """Also give it the episode's first frame. [paper: no]"""
    motion_prior: bool = True
    """Let the U-Net take each place of a frame from the last frame, the first one, or the last one moved as the actions
    say, by a learned linear map from actions to image motion. [paper: no]"""
    action_conditioning: Literal["frame", "chunk"] = "frame"
    """frame: each frame is modulated by its own action; chunk: all frames by the whole chunk. [paper: frame]"""
    objective: Literal["flow", "epsilon"] = "flow"
    """flow: rectified flow; epsilon: noise prediction. [paper epsilon, code flow]"""
    context_noise: float = 0.015
    """Noise level that perturbs the context in training; its embedding is kept at sampling. [paper 0.05, code 0.015]"""
    training_timesteps: Literal["sampler", "all"] = "sampler"
    """Noise levels met in training. sampler: only those of the sampling steps, which saves a small model most of its
    work; all: logit-normal (flow) or uniform (epsilon). [paper: all]"""
    sampling_steps: int = 1
    """Euler steps per imagined chunk. [code 30]"""
    width: int = 32
    """Channels of the U-Net's fine level (the coarse one has four times as many), or width of the transformer."""
    depth: int = 4
    """Residual blocks of the U-Net's coarse level, or pairs of blocks of the transformer."""
    heads: int = 4
    """Attention heads of the transformer."""
    kinematics_fit: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=300, batch_size=32, lr=5e-3, warmup=20)
    )
    """Training of the few weights that know how the robot's state, and the picture with it, answers to actions."""
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=600, batch_size=32, cpu_shards=2, lr=2e-3, ema=0.995)
    )
    """Pretraining on the demonstrations."""
    align: FitConfig = field(
        default_factory=lambda: FitConfig(optimizer="muon", steps=250, batch_size=32, cpu_shards=2, lr=1e-3, ema=0.995)
    )
    """Policy behaviour alignment: training on the policy's own rollouts, failures included, and demonstrations."""
    align_fraction: float = 0.5
    """Share of each alignment batch drawn from the policy's own rollouts."""


@dataclass(frozen=True)
class RewardConfig:
    backbone: Literal["conv", "videomae"] = "conv"
    """The clip classifier: a small convolutional one, or VideoMAE. [paper: VideoMAE-base]"""
    clip_length: int = 4
    """L: frames per clip. [paper 8]"""
    stride: int = 2
    """Frames between the ends of scored clips, counted back from the end of a chunk. [paper 1]"""
    threshold: Literal["rate", "f1", "half"] = "rate"
    """The score above which a clip counts as success. rate: such that the policy succeeds in the dream as often as it
    did for real; f1: the best F1 on imagined replays of held-out real episodes; half: such that half of the dreams
    succeed, whatever is true, to try things out with a policy that never succeeds. [paper: f1, on real clips]"""
    imagined_fraction: float = 0.5
    """Share of each batch taken from imagined replays of real episodes, labelled by what really happened: the
    classifier judges dreams, so it should have seen some. [paper: 0]"""
    width: int = 32
    """Channels of the first stage of the small classifier, or hidden size of VideoMAE."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(steps=400, batch_size=64, cpu_shards=2))
    """Training on balanced clips. [paper lr 1e-4]"""


@dataclass(frozen=True)
class GRPOConfig:
    iterations: int = 20
    """Policy iterations: imagine groups, then a few clipped updates."""
    groups: int = 40
    """Informative groups per iteration. [paper 64]"""
    group_size: int = 8
    """G: imagined rollouts from one initial frame. [paper 8]"""
    n_initial_states: int = 256
    """Real initial frames to practise from (resets of the real environment, no actions)."""
    keyframes: int = 0
    """Also practise from so many frames of the middle of the policy's own real rollouts, where success is nearer and
    what matters is easier to tell. [paper: 0]"""
    lr: float = 3e-4
    """AdamW learning rate, constant after the warm-up. [paper 5e-6, 7B parameters]"""
    freeze: tuple[str, ...] = ()
    """Parts of the policy that practice leaves alone, by the beginnings of their parameters' names."""
    warmup: int = 8
    """Optimiser steps of linear warm-up: Adam's first steps are as large as any, and mostly noise. [paper: none]"""
    minibatches: int = 4
    """Optimiser steps per iteration, one pass over the batch. [paper 4]"""
    micro_batch: int = 32
    """Episodes of which gradients are computed at once, by a GPU or by each core of a CPU; they add up to that of the
    mini-batch. Less takes less memory, and changes what is learned by nothing but rounding."""
    clip_low: float = 0.20
    """The ratio is clipped below 1 - clip_low. [paper 0.20]"""
    clip_high: float = 0.28
    """The ratio is clipped above 1 + clip_high. [paper 0.28]"""
    ratio: Literal["chunk", "token"] = "token"
    """Probability ratio of the whole chunk (paper) or of each token (code)."""
    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    """grpo: reward minus the group's mean, over its spread; dr_grpo: without that division, nor one by the episode's
    length; rloo: reward minus the mean of the others."""
    temperature: float = 0.5
    """Sampling temperature, used for log-probabilities too. A small policy that samples at 1 fails of its dice, and its
    practice is spent on fighting them. [paper 1.6]"""
    grad_clip: float = 1.0
    """Largest gradient norm. [paper 1]"""
    min_group_success: float = 0.1
    """Dynamic sampling: groups with a mean success below this are skipped. [paper: above 0; code 0.1]"""
    max_group_success: float = 0.9
    """Dynamic sampling: groups with a mean success above this are skipped. [paper: below 1; code 0.9]"""
    max_resamples: int = 0
    """Dynamic sampling: how many times a batch that came out short is refilled; 0 turns refilling off."""
    ema: float = 0.75
    """Decay, per iteration, of the moving average of the weights that practice hands on; 0: those of its last
    iteration. [paper: none]"""
    target_kl: float = 0.0
    """The stop rule: practice ends once the policy is so far from where it began, the policy that the dream was aligned
    on: KL divergence of its choices from those, in nats per chunk. 0: only `iterations` end it. [paper: none]"""
    shuffle_rewards: bool = False
    """Control experiment: permute rewards inside each group, so that they say nothing."""


@dataclass(frozen=True)
class EvaluateConfig:
    episodes: int = 256
    """Real episodes from held-out initial states, the same ones for every policy. [paper 128]"""
    temperature: float = 0.0
    """0: greedy."""
    practice_eval_freq: int = 10
    """Also measure the practising policy for real every so many iterations, for the report's curve; 0: never."""
    practice_eval_episodes: int = 64
    """Episodes of each such measurement; their initial states are used for nothing else."""


@dataclass(frozen=True)
class Recipe:
    """One whole run: demonstrations, base policy, collection, world model, reward model, imagination, evaluation."""

    name: str = "push"
    seed: int = 0
    """One seed gives one result on one machine."""
    rounds: int = 1
    """Lifelong learning: how often to collect, align and practise."""
    control: bool = True
    """Also practise with rewards shuffled inside each group; the honest control costs one more practice."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    env: EnvConfig = field(default_factory=EnvConfig)
    demonstrations: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
