"""Vision-language-action models that denoise action chunks: pi0 and SmolVLA, behind one policy.

A network has a prefix, computed once per decision from pictures, sentence and state, and an action expert that is asked
for the velocity at every denoising step. The vision-language model stays frozen: imitation and practice train the rest.

Departures from both, so that log-probabilities hold all that is random:
1. A chunk is as long as what is executed, without a tail that is thrown away.
2. Both networks have more action dimensions than a robot, filled with zeros. There the flow is taken as known: noise
   that fades.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.config import PolicyConfig
from wmpo.data.normalizer import Normalizer
from wmpo.errors import UserError, optional
from wmpo.io.files import atomic_write, read_json
from wmpo.losses.flow_policy import Field, beta_times, flow_matching_loss, path_log_prob, sample_path
from wmpo.nn.layers import zero_init
from wmpo.nn.text import refuse_longer
from wmpo.policies.published import FlowNetwork, Published
from wmpo.policies.settings import FlowConfig, FlowVLASettings, MiniVLASettings
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

    @property
    def cameras(self) -> tuple[str, ...]:
        """It resizes whatever it sees, and asks for no camera by name."""
        return ()


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
        flow = config.flow if isinstance(config, (FlowVLASettings, MiniVLASettings)) else self.config.flow
        self.config = replace(self.config, chunk=config.chunk, flow=flow)
        self.spread = self._noise_network()

    def action_range(self) -> tuple[Tensor, Tensor]:
        """Between these nearly all actions lay that it was trained on, (D,) each."""
        low, high = self.normalizer.action_low, self.normalizer.action_high  # a standard deviation off the mean
        return 2 * low - high, 2 * high - low

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Take over what actions and states mean."""
        self.normalizer.load_state_dict(normalizer.state_dict())

    def field(self, observation: Observation, idle: Tensor) -> Field:
        """`idle` (B, K, rest): the noise in dimensions that the robot lacks."""
        cfg = self.config
        images = [self._pixels(image) for image in observation.images.values()]
        tokens, mask = self._tokens(observation.instruction)
        state = self.normalizer.normalize_state(observation.state)
        prefix = self.network.prefix(
            torch.stack(images, 1), tokens, mask, F.pad(state, (0, self.network.state_width - cfg.state_dim))
        )

        def flow(x: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor | None]:
            whole = torch.cat([x, (1 - t_B)[:, None, None] * idle], -1)
            # Their time runs from data to noise.
            velocity, h = self.network.velocity(prefix, whole, 1 - t_B)
            return -velocity[..., : cfg.action_dim], self.spread(h).tanh() if self.spread is not None else None

        return flow

    def _pixels(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to [-1, 1] in the size of the network, black above and left where it isn't square."""
        size = self.network.image_size
        height, width = image.shape[-2:]
        scale = size / max(height, width)
        image = image.float() / 255
        if scale != 1:
            shape = (int(height * scale), int(width * scale))
            image = F.interpolate(image, size=shape, mode="bilinear", align_corners=False)
        return 2 * F.pad(image, (size - image.shape[-1], 0, size - image.shape[-2], 0)) - 1

    def _tokens(self, instruction: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """(B, L) token numbers, and where they are no padding."""
        found = {s: self.tokenizer.encode(f"{s}\n", add_special_tokens=False).ids for s in set(instruction)}
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
        """The trace is the path from noise to normalised actions, (B, steps + 1, K, width of the network): first the
        robot's D dimensions, then the noise of the others. U = steps * D."""
        cfg, there = self.config, observation.state.device
        size = (len(observation), cfg.flow.steps + 1, cfg.chunk, self.network.action_width)
        noise = torch.randn(size, generator=generator, device=there).to(self.normalizer.action_low.device)
        own, idle = noise[..., : cfg.action_dim], noise[:, :1, :, cfg.action_dim :]
        path, log_prob = sample_path(
            self.field(observation.to(noise.device), idle[:, 0]), own, temperature * cfg.flow.level
        )
        trace = torch.cat([path, idle.expand(-1, cfg.flow.steps + 1, -1, -1)], -1)
        chunk = self.normalizer.limit_action(self.normalizer.unnormalize_action(path[:, -1]))
        return Decision(chunk.to(there), trace.to(there), log_prob.to(there))

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        D = self.config.action_dim
        flow = self.field(observation, trace[:, 0, :, D:])
        return path_log_prob(flow, trace[..., :D], temperature * self.config.flow.level)

    # Imitation

    def forward(
        self, batch: ImitationBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching at pi0's times."""
        D, device = self.config.action_dim, batch.action.device
        data = self.normalizer.normalize_action(batch.action)
        size = (*data.shape[:2], self.network.action_width)
        noise = torch.randn(size, generator=generator, device=device)
        t_B = beta_times(torch.rand(len(data), generator=generator, device=device))
        flow = self.field(batch.observation, noise[..., D:])
        loss = flow_matching_loss(flow, data, noise[..., :D], t_B, batch.mask.float())
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
            from wmpo.policies import smolvla

            return cls._from_published(smolvla.published(folder), folder)
        if isinstance(described, dict) and described.get("model_type") == "pi0":
            from wmpo.policies import pi0

            return cls._from_published(pi0.published(folder), folder)
        policy = cls(load_config(folder, FlowVLAConfig), _text(folder / TOKENIZER))
        load_module(folder, policy)
        return policy.eval()

    @classmethod
    def _from_published(cls, found: Published, folder: Path) -> FlowVLA:
        own = found.normalizer
        config = FlowVLAConfig(found.network, found.settings, found.chunk, len(own.state_mean), len(own.action_low))
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
