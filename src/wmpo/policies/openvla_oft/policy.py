"""OpenVLA-OFT as a policy: images + instruction (+ state) -> K x D discrete action tokens, decoded in parallel.

The sequence is: beginning, patches of every camera, (state), prompt, K*D empty embeddings, end. Every position attends
to every other, whatever comes first, and an action token is read where the one before it stands, as in next-token
prediction.

Departures from the reference code:
1. Choices are among the 256 action tokens, as in WMPO's code; OpenVLA-OFT's own greedy choice is among all tokens, of
   which those that mean no action become the nearest bin.
2. Sentences of different lengths share a batch: what pads them is not attended to.
3. Actions are kept within what was demonstrated, as far as the statistics tell: lowest and highest, or the quantiles.
4. Logits are computed in float32 from the last hidden states, also with bfloat16: ratios of probabilities need it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.config import PolicyConfig
from wmpo.data.normalizer import Normalizer
from wmpo.errors import UserError
from wmpo.io.files import read_json
from wmpo.nn.precision import computing_in
from wmpo.policies.openvla_oft import images, lora, networks
from wmpo.policies.openvla_oft.config import BINS, OpenVLAOFTConfig
from wmpo.policies.openvla_oft.prompt import Prompt
from wmpo.training.checkpoint import CONFIG, load_config, load_module, save_module
from wmpo.types import Decision, Observation

if TYPE_CHECKING:
    from wmpo.data.clips import ImitationBatch
    from wmpo.policies.published import Republished

ADAPTED = ("dino", "siglip", "projector", "language_model.model")  # what low-rank changes are made to


class Options(TypedDict, total=False):
    """Settings of `OpenVLAOFTConfig` that no checkpoint tells."""

    resize: Literal["lanczos", "bicubic"]
    crop: float
    precision: Literal["float32", "bfloat16"]
    checkpointing: bool
    lora_rank: int


class OpenVLAOFT(nn.Module):
    """Fulfils `wmpo.protocols.Policy`; `forward` is the imitation loss."""

    family = "openvla_oft"
    edges: Tensor

    def __init__(self, config: OpenVLAOFTConfig, prompt: Prompt) -> None:
        super().__init__()
        self.config, self.prompt = config, prompt
        self.chunk = config.chunk
        width = config.language.width
        self.dino = networks.dino(config.dino)
        self.siglip = networks.siglip(config.siglip)
        self.projector = networks.Projector(config.dino.width + config.siglip.width, width)
        self.language_model: Any = networks.llama(config.language)
        states = config.state_dim
        self.proprio_projector = None if states is None else networks.ProprioProjector(states, width)
        self.action_head = networks.RegressionHead(config.action_dim, width) if config.head == "l1" else None
        self.normalizer = Normalizer(config.action_dim, states or 0)
        self.register_buffer("edges", torch.linspace(-1, 1, BINS), persistent=False)
        self.bins = BINS if config.head == "tokens" else 0
        if config.lora_rank:
            lora.adapt(self, ADAPTED, config.lora_rank)
            for head in (self.proprio_projector, self.action_head):
                if head is not None:
                    head.requires_grad_(True)
        if config.checkpointing:
            for network in self.transformers():
                network.activation_checkpointing_enable()

    def transformers(self) -> tuple[Any, ...]:
        """The parts that are transformers' own."""
        return self.dino, self.siglip, self.language_model

    def train(self, mode: bool = True) -> OpenVLAOFT:
        """Nothing inside depends on the mode, except that transformers saves activations in training mode only."""
        super().train(mode)
        if self.config.checkpointing:
            for network in self.transformers():
                network.train()
        return self

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Take over what actions and states mean."""
        self.normalizer.load_state_dict(normalizer.state_dict())

    def action_range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest action that its tokens can choose, (D,) each."""
        return self.normalizer.action_low, self.normalizer.action_high

    def prepare(self, config: PolicyConfig) -> None:
        """Take the chunk of a recipe; no weight depends on its length, but what it was trained with is best."""
        self.chunk = config.chunk
        self.config = replace(self.config, chunk=config.chunk)

    def merged(self) -> OpenVLAOFT:
        """The same policy without low-rank changes: they are in the weights, all of which are trained from then on."""
        whole = copy.deepcopy(self)
        whole.config = replace(self.config, lora_rank=0)
        lora.merge(whole)
        return whole

    # The network

    def see(self, observation: Observation) -> Tensor:
        """(B, cameras * patches, width) tokens of all images."""
        cfg = self.config
        seen = []
        for name in cfg.cameras:
            features = []
            for tower, its, prefix in ((self.dino, cfg.dino, 1 + cfg.dino.registers), (self.siglip, cfg.siglip, 0)):
                image = images.prepare(observation.images[name], its.image_size, cfg.resize, cfg.crop)
                mean, std = torch.tensor([its.mean, its.std], device=image.device)
                features.append(networks.patches(tower, images.normalise(image, mean, std), prefix))
            seen.append(self.projector(torch.cat(features, dim=2)))
        return torch.cat(seen, dim=1)

    def hidden(self, observation: Observation) -> Tensor:
        """(B, K, D, width) last hidden states from which the action tokens are read."""
        cfg = self.config
        ids, length = self.prompt.ids(observation.instruction, cfg.chunk * cfg.action_dim)
        ids, length = ids.to(self.edges.device), length.to(self.edges.device)
        place = torch.arange(ids.shape[1], device=ids.device)
        first = (length - cfg.chunk * cfg.action_dim - 1)[:, None]  # of the empty embeddings; the end comes after them
        words = self.language_model.get_input_embeddings()(ids)
        words = words * ((place < first) | (place == length[:, None] - 1)).unsqueeze(-1)
        tokens = self.see(observation)
        if self.proprio_projector is not None:
            state = self.normalizer.normalize_state(observation.state).clamp(-1, 1)
            tokens = torch.cat([tokens, self.proprio_projector(state).unsqueeze(1)], dim=1)
        P = tokens.shape[1]
        sequence = torch.cat([words[:, :1], tokens, words[:, 1:]], dim=1)
        real = F.pad(place < length[:, None], (P, 0), value=True)  # (B, P + words)
        mask = real[:, None, None].expand(-1, 1, sequence.shape[1], -1)
        hidden = self.language_model.model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state
        index = P + first - 1 + torch.arange(cfg.chunk * cfg.action_dim, device=ids.device)
        return hidden[torch.arange(len(ids), device=ids.device)[:, None], index].unflatten(1, (cfg.chunk, -1))

    def logits(self, observation: Observation) -> Tensor:
        """(B, K, D, 256) float32, unnormalised log-probabilities of the bins, from the lowest to the highest action."""
        if self.action_head is not None:
            raise UserError(
                "This OpenVLA-OFT has an L1 regression head: it gives one action, and no probabilities to sample by or "
                "for GRPO to raise. Let it act at temperature 0; to practise, fine-tune on discrete action tokens."
            )
        language = self.config.language
        end = language.vocabulary - language.padding
        with computing_in(self.config.precision, self.edges.device):
            hidden = self.hidden(observation)
        # The last token is the lowest bin.
        return F.linear(hidden.float(), self.language_model.lm_head.weight[end - BINS : end]).flip(-1)

    def regress(self, observation: Observation) -> Tensor:
        """(B, K, D) normalised actions of the L1 head."""
        assert self.action_head is not None
        with computing_in(self.config.precision, self.edges.device):
            return self.action_head(self.hidden(observation)).float()

    # Policy

    @torch.no_grad()
    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        """The decision lies on the observation's device, wherever the policy itself computes."""
        there = observation.state.device
        observation = observation.to(self.edges.device)
        if self.action_head is not None and temperature == 0:
            chunk = self.unnormalise(self.regress(observation)).to(there)
            return Decision(chunk=chunk, trace=chunk, log_prob=torch.zeros_like(chunk))  # certain
        logits = self.logits(observation).to(there)
        if temperature == 0:
            bins = logits.argmax(-1)
            log_prob = torch.zeros_like(bins, dtype=torch.float32)  # the greedy choice is certain
        else:
            log_probs = F.log_softmax(logits / temperature, dim=-1)
            bins = torch.multinomial(log_probs.exp().flatten(0, -2), 1, generator=generator).view(logits.shape[:-1])
            log_prob = log_probs.gather(-1, bins.unsqueeze(-1)).squeeze(-1)
        chunk = self.decode_actions(bins.to(self.edges.device)).to(there)
        return Decision(chunk=chunk, trace=bins, log_prob=log_prob)

    def log_prob(self, observation: Observation, trace: Tensor, *, temperature: float) -> Tensor:
        log_probs = F.log_softmax(self.logits(observation) / temperature, dim=-1)
        return log_probs.gather(-1, trace.unsqueeze(-1)).squeeze(-1)

    def decode_actions(self, bins_BKD: Tensor) -> Tensor:
        """Actions of bins: 256 edges leave 255 bins, the last of which has two tokens."""
        centers = (self.edges[:-1] + self.edges[1:]) / 2
        return self.unnormalise(centers[bins_BKD.clamp(max=BINS - 2)])

    def unnormalise(self, unit_BKD: Tensor) -> Tensor:
        """From [-1, 1] between the quantiles to the robot's own units, kept within what was demonstrated."""
        return self.normalizer.limit_action(self.normalizer.unnormalize_action(unit_BKD))

    def normalise(self, action_BKD: Tensor) -> Tensor:
        """The inverse of `unnormalise`, kept within [-1, 1] as in the authors' data: there are no tokens beyond."""
        return self.normalizer.normalize_action(action_BKD).clamp(-1, 1)

    # Imitation

    def forward(
        self, batch: ImitationBatch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the action tokens, or the L1 distance of regressed actions, averaged over valid actions."""
        unit = self.normalise(batch.action)
        if self.action_head is not None:
            guess = self.regress(batch.observation)
            each = (guess - unit).abs().mean(-1)  # (B, K)
        else:
            logits = self.logits(batch.observation)
            target = torch.bucketize(unit, self.edges, right=True) - 1
            each = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(unit.shape).mean(-1)
            guess = self.edges[logits.argmax(-1)]
        mask = batch.mask.float()
        loss = (each * mask).sum() / mask.sum()
        with torch.no_grad():
            error = (guess - unit).abs().mean(-1)
            metrics = {"loss": loss.detach(), "action_error": (error * mask).sum() / mask.sum()}
        return loss, metrics

    # Files

    def save_pretrained(self, folder: Path) -> None:
        save_module(folder, self, self.config)
        self.prompt.save(folder)

    @property
    def origin(self) -> str:
        return self.config.origin

    def republished(self, folder: Path, scratch: Path) -> Republished:
        """See `wmpo.policies.published.Republishes`; low-rank changes are folded in."""
        from wmpo.policies.openvla_oft.published import republished

        return republished(self.merged() if self.config.lora_rank else self, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> OpenVLAOFT:
        """One that `save_pretrained` wrote, or a published one with the defaults of `from_published`."""
        described = read_json(Path(folder) / CONFIG)
        if isinstance(described, dict) and described.get("model_type") == "openvla":
            return cls.from_published(folder)
        policy = cls(load_config(folder, OpenVLAOFTConfig), Prompt.load(folder))
        load_module(folder, policy)
        return policy.eval()

    @classmethod
    def from_published(
        cls,
        folder: Path,
        *,
        cameras: Sequence[str] = ("front",),
        chunk: int = 8,
        statistics: str | None = None,
        adapter: Path | None = None,
        **settings: Unpack[Options],
    ) -> OpenVLAOFT:
        """From a checkpoint in the layout of its authors, which `wmpo.policies.openvla_oft.published` describes.

        `cameras`: their names here, in the order of training. `statistics`: the data set that actions are normalised
        by, where there are several. `adapter`: a folder in PEFT's layout, whose low-rank changes are added to the
        weights, with the statistics of its fine-tuning in it or beside it. `settings`: other fields of
        `OpenVLAOFTConfig`. Raises UserError where anything is missing, left over, unsafe to open, or of another
        architecture.
        """
        from wmpo.policies.openvla_oft.published import load

        return load(cls, Path(folder), tuple(cameras), chunk, statistics, adapter, settings).eval()
