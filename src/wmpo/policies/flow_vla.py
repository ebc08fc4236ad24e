"""Vision-language-action models that denoise action chunks: pi0 and SmolVLA, behind one policy.

A network has a prefix, computed once per decision from pictures, sentence and state, and an action expert that is asked
for the velocity at every denoising step. The vision-language model stays frozen: imitation and practice train the rest.

Both networks have more action dimensions than a robot, filled with zeros in training. They are denoised with the
others, but without noise on the way: they follow from where they begin and from the robot's own, so that
log-probabilities of the latter hold all that is random.

Departures from both:
1. A chunk is as long as what is executed, without a tail that is thrown away.
2. Actions are kept within what was demonstrated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.config import PolicyConfig
from wmpo.data.normalizer import Normalizer
from wmpo.errors import UserError, named, optional
from wmpo.io.files import atomic_write, read_json
from wmpo.losses.flow_policy import Field, beta_times, flow_matching_loss, path_log_prob, sample_path
from wmpo.nn.layers import zero_init
from wmpo.nn.text import refuse_longer
from wmpo.policies.published import FlowNetwork, Published, Republished, check_statistics
from wmpo.policies.settings import FlowConfig, FlowVLASettings
from wmpo.training.checkpoint import CONFIG, load_config, load_module, load_weights, save_module
from wmpo.types import Decision, Observation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from wmpo.data.clips import ImitationBatch

TOKENIZER = "tokenizer.json"
LONGEST = 48  # tokens of a sentence, as in training


@dataclass(frozen=True)
class FlowVLAConfig:
    """What a saved one needs to be built again."""

    network: Literal["pi0", "smolvla"]
    settings: dict[str, object]
    """The network's own, as it was published."""
    chunk: int
    state_dim: int
    action_dim: int
    flow: FlowConfig = field(default_factory=lambda: FlowConfig(steps=10))
    features: tuple[str, ...] = ()
    """Its own names of its cameras, where it was published with any."""
    cameras: tuple[str, ...] = ()
    """What it sees, by the environment's names; (): all that is shown, in that order."""
    origin: str = ""
    """The folder that it was published in, to which `wmpo export` goes back."""

    camera_setting: ClassVar[str] = "policy.cameras"
    """What maps one to the other, for complaints."""

    def seeing(self, chosen: tuple[str, ...]) -> FlowVLAConfig:
        """With the cameras of `chosen`, a setting of `FlowVLASettings`."""
        if not self.features:
            if strange := [entry for entry in chosen if "=" in entry]:
                raise UserError(f"policy.cameras has {strange[0]!r}, but this policy names no cameras of its own.")
            return replace(self, cameras=chosen)
        pairs = [(own, camera or own) for own, _, camera in (entry.partition("=") for entry in chosen)]
        for own, _ in pairs:
            named("camera of this policy for policy.cameras", own, dict.fromkeys(self.features))
        if len(dict(pairs)) < len(pairs):
            raise UserError("policy.cameras names a camera of the policy twice.")
        return replace(self, cameras=tuple(dict(pairs)[own] for own in self.features if own in dict(pairs)))


class FlowVLA(nn.Module):
    """Fulfils `wmpo.protocols.Policy`; `forward` is the imitation loss, flow matching."""

    def __init__(self, config: FlowVLAConfig, tokenizer: str) -> None:
        """`tokenizer` is the content of a tokenizer.json."""
        super().__init__()
        self.config = config
        self.tokenizer = _tokenizer(tokenizer)
        self.network = _network(config)
        self.spread = self._noise_network()
        self.normalizer = Normalizer(config.action_dim, config.state_dim)

    @property
    def chunk(self) -> int:
        return self.config.chunk

    @property
    def family(self) -> str:
        return self.config.network

    def _noise_network(self) -> nn.Module | None:
        learned = self.config.flow.noise == "learned"
        return zero_init(nn.Linear(self.network.width, self.config.action_dim)) if learned else None

    def prepare(self, config: PolicyConfig) -> None:
        """Take the chunk and the noise of a recipe; no weight depends on the length of a chunk."""
        self.config = replace(self.config, chunk=config.chunk)
        if isinstance(config, FlowVLASettings):
            flow = replace(config.flow, steps=config.flow.steps or self.config.flow.steps)
            self.config = replace(self.config, flow=flow)
            if config.cameras:
                self.config = self.config.seeing(config.cameras)
            if config.patch_positions != "auto":
                self._number_patches(config.patch_positions)
        self.spread = self._noise_network()

    def _number_patches(self, positions: Literal["exact", "shifted"]) -> None:
        from wmpo.policies.smolvla import SmolVLANetwork

        if not isinstance(self.network, SmolVLANetwork):
            raise UserError("policy.patch_positions is a setting of SmolVLA: a pi0 numbers its patches in one way.")
        self.network.sizes = replace(self.network.sizes, patch_positions=positions)
        self.config = replace(self.config, settings={**self.config.settings, "patch_positions": positions})

    def action_range(self) -> tuple[Tensor, Tensor]:
        """Between these nearly all actions lay that it was trained on, (D,) each."""
        low, high = self.normalizer.action_low, self.normalizer.action_high  # a standard deviation off the mean
        return 2 * low - high, 2 * high - low

    def widen(self, action_ND: Tensor) -> None:
        """Let actions reach what was demonstrated here, beyond what the published statistics say or don't."""
        own, action_ND = self.normalizer, action_ND.to(self.normalizer.action_min)
        own.action_min = torch.minimum(own.action_min, action_ND.amin(0))
        own.action_max = torch.maximum(own.action_max, action_ND.amax(0))

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Take over what actions and states mean."""
        self.normalizer.load_state_dict(normalizer.state_dict())

    def field(self, observation: Observation) -> Field:
        """Of actions (B, K, action_width), in the robot's dimensions and those that it lacks; a spread has the former
        alone."""
        cfg = self.config
        images = [self.network.pixels(observation.images[name]) for name in cfg.cameras or observation.images]
        tokens, mask = self._tokens(observation.instruction)
        state = self.normalizer.normalize_state(observation.state)
        prefix = self.network.prefix(
            torch.stack(images, 1), tokens, mask, F.pad(state, (0, self.network.state_width - cfg.state_dim))
        )

        def flow(x: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor | None]:
            velocity, h = self.network.velocity(prefix, x, 1 - t_B)  # their time runs from data to noise
            return -velocity, self.spread(h).tanh() if self.spread is not None else None

        return flow

    def _tokens(self, instruction: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """(B, L) token numbers, and where they are no padding."""
        lines = {s: s if s.endswith("\n") else f"{s}\n" for s in set(instruction)}
        found = {s: self.tokenizer.encode(line, add_special_tokens=False).ids for s, line in lines.items()}
        for sentence, tokens in found.items():
            refuse_longer(sentence, len(tokens), LONGEST, "tokens")
        rows = [[*self.network.begin, *found[sentence]] for sentence in instruction]
        length = max(map(len, rows))
        device = self.normalizer.action_low.device
        mask = torch.tensor([[place < len(row) for place in range(length)] for row in rows], device=device)
        return torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device), mask

    # Policy

    @torch.no_grad()
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        """The trace is the path from noise to normalised actions, (B, steps + 1, K, width of the network), of which the
        robot's D dimensions come first. U = steps * D."""
        cfg, there = self.config, observation.state.device
        size = (len(observation), cfg.flow.steps + 1, cfg.chunk, self.network.action_width)
        noise = torch.randn(size, generator=generator, device=there).to(self.normalizer.action_low.device)
        field = self.field(observation.to(noise.device))
        trace, log_prob = sample_path(field, noise, temperature * cfg.flow.level, cfg.action_dim)
        own = self.normalizer.unnormalize_action(trace[:, -1, :, : cfg.action_dim])
        return Decision(self.normalizer.limit_action(own).to(there), trace.to(there), log_prob.to(there))

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        cfg = self.config
        return path_log_prob(self.field(observation), trace, temperature * cfg.flow.level, cfg.action_dim)

    # Imitation

    def forward(
        self, batch: ImitationBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching at pi0's times, with zeros in the dimensions that the robot lacks."""
        device = batch.action.device
        own = self.normalizer.normalize_action(batch.action)
        data = F.pad(own, (0, self.network.action_width - own.shape[-1]))
        noise = torch.randn(data.shape, generator=generator, device=device)
        t_B = beta_times(torch.rand(len(data), generator=generator, device=device))
        loss = flow_matching_loss(self.field(batch.observation), data, noise, t_B, batch.mask.float())
        return loss, {"loss": loss.detach()}

    # Files

    def save_pretrained(self, folder: Path) -> None:
        atomic_write(Path(folder) / TOKENIZER, self.tokenizer.to_str())
        save_module(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: Path) -> FlowVLA:
        """One that `save_pretrained` wrote, a SmolVLA as LeRobot saves it, or a pi0 as transformers saves it."""
        folder = Path(folder)
        described = read_json(folder / CONFIG)
        if isinstance(described, dict) and described.get("type") == "smolvla":
            from wmpo.policies import lerobot

            return cls._from_published(lerobot.published(folder), folder)
        if isinstance(described, dict) and described.get("model_type") == "pi0":
            from wmpo.policies import pi0

            return cls._from_published(pi0.published(folder), folder)
        policy = cls(load_config(folder, FlowVLAConfig), _text(folder / TOKENIZER))
        load_module(folder, policy)
        return policy.eval()

    @property
    def origin(self) -> str:
        return self.config.origin

    def republished(self, folder: Path, scratch: Path) -> Republished:
        """See `wmpo.policies.published.Republishes`. Flow-Noise's network is for practice alone, and stays here."""
        from wmpo.policies import lerobot, pi0

        cfg, told = self.config, read_json(folder / CONFIG)
        if not isinstance(told, dict) or cfg.network not in (told.get("type"), told.get("model_type")):
            raise UserError(f"{folder} holds no {cfg.network}: give the folder that the policy began from.")
        network: Any = self.network
        if cfg.network == "pi0":
            check_statistics(self.normalizer, pi0.normalizer(folder), folder)
            return pi0.republished(network, cfg.chunk, cfg.flow.steps, scratch)
        check_statistics(self.normalizer, lerobot.normalizer(folder), folder)
        return lerobot.republished(network, cfg.chunk, cfg.flow.steps, told)

    @classmethod
    def _from_published(cls, found: Published, folder: Path) -> FlowVLA:
        own = found.normalizer
        if not 1 <= found.steps <= 1000:
            raise UserError(f"{folder / CONFIG} asks for {found.steps} denoising steps; there must be 1 to 1000.")
        config = FlowVLAConfig(
            network=found.network,
            settings=found.settings,
            chunk=found.chunk,
            state_dim=len(own.state_mean),
            action_dim=len(own.action_low),
            flow=FlowConfig(steps=found.steps),
            features=found.features,
            cameras=found.cameras,
            origin=str(folder.resolve()),
        )
        policy = cls(config, _text(found.tokenizer))
        if config.action_dim > policy.network.action_width or config.state_dim > policy.network.state_width:
            raise UserError(
                f"{folder} has statistics of {config.action_dim} action and {config.state_dim} state dimensions, more "
                f"than its network takes ({policy.network.action_width} and {policy.network.state_width})."
            )
        tensors = {f"network.{name}": tensor for name, tensor in found.tensors.items()}
        tensors |= {f"normalizer.{name}": row for name, row in own.state_dict().items()}
        load_weights(policy, tensors, folder)
        return policy.eval()


def _network(config: FlowVLAConfig) -> FlowNetwork:
    if config.network == "pi0":
        from wmpo.policies.pi0 import PI0Network

        return PI0Network(config.settings)
    from wmpo.policies.smolvla import SmolVLANetwork

    return SmolVLANetwork(config.settings)


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path} does not exist: the policy needs the tokenizer that it was trained with.")
    return path.read_text(encoding="utf-8")


def _tokenizer(text: str) -> Tokenizer:
    tokenizers = optional("tokenizers", "pi0 and SmolVLA need")
    try:
        found: Tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # whatever its parser raises
        raise UserError(f"tokenizer.json is damaged: {str(error).splitlines()[0]}.") from error
    found.no_truncation()  # what its batches once needed may be stored with it
    found.no_padding()
    return found
