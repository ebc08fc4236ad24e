"""OpenVLA-OFT at a tiny size: equal to an independent implementation, and as strict with files as it claims."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from golden import make_openvla_oft as tiny
from wmpo import policies
from wmpo.cli.models import fitting
from wmpo.config import FitConfig, GRPOConfig, PolicyConfig
from wmpo.contracts import check_policy
from wmpo.data.clips import ImitationBatch
from wmpo.errors import UserError
from wmpo.grpo import advantages, play_groups, practise, trained_parameters, update
from wmpo.imagination import ImaginedEnv
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.openvla_oft import OpenVLAOFT, images
from wmpo.training.fit import fit
from wmpo.training.log import RunLog
from wmpo.types import EnvSpec, Observation

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CAMERAS = ("front", "wrist")
GOLDEN = load_file(tiny.GOLDEN)
CPU = torch.device("cpu")


def publish(folder: Path, *parts: str) -> Path:
    """The tiny checkpoint in two shards, with some of the parts that are stored apart."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(tiny.CONFIG))
    (folder / "dataset_statistics.json").write_text(json.dumps(tiny.STATISTICS))
    words = {word: i for i, word in enumerate(tiny.WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words["<s>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = tiny.checkpoint()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file in sorted(set(weight_map.values())):
        save_file({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, folder / file)
    for part in parts:
        save_file({f"module.{name}": t for name, t in tiny.parts()[part].items()}, folder / f"{part}.safetensors")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("oft") / "published", "proprio_projector")


def opened(folder: Path, **settings: Any) -> OpenVLAOFT:
    return OpenVLAOFT.from_published(folder, cameras=CAMERAS, chunk=tiny.K, **{"crop": 1.0, **settings})


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> OpenVLAOFT:
    return opened(checkpoint)


def observation() -> Observation:
    pictures, state = tiny.observations()
    seen = {name: torch.from_numpy(frames).permute(0, 3, 1, 2) for name, frames in pictures.items()}
    return Observation(seen, torch.from_numpy(state), tiny.SENTENCES)


def sampled(policy: OpenVLAOFT, temperature: float = 1.0, seed: int = 0) -> Any:
    return policy.act(observation(), temperature=temperature, generator=torch.Generator().manual_seed(seed))


# Equal to the reference


def test_logits_and_greedy_actions_equal_those_of_an_independent_implementation(policy: OpenVLAOFT) -> None:
    with torch.no_grad():
        logits = policy.logits(observation())
    assert GOLDEN["logits"].std() > 0.5
    in_token_order = logits.flip(-1)[..., ::4]
    torch.testing.assert_close(in_token_order, GOLDEN["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(sampled(policy, 0.0).chunk, GOLDEN["actions"], rtol=0, atol=1e-4)
    assert len(GOLDEN["actions"].unique()) > 4


def test_regressed_actions_too(tmp_path: Path) -> None:
    policy = opened(publish(tmp_path / "l1", "proprio_projector", "action_head"))
    decision = sampled(policy, 0.0)
    assert GOLDEN["regressed"].abs().max() < 1 and GOLDEN["regressed"].std() > 0.1
    torch.testing.assert_close(decision.chunk, GOLDEN["regressed"], rtol=0, atol=1e-4)
    assert torch.equal(decision.log_prob, torch.zeros(2, tiny.K, tiny.D))
    for asking in (lambda: sampled(policy, 1.0), lambda: policy.log_prob(observation(), decision.trace, temperature=1)):
        with pytest.raises(UserError, match=r"L1 regression head.*no probabilities"):
            asking()
    batch = ImitationBatch(observation(), decision.chunk, torch.ones(2, tiny.K, dtype=torch.bool))
    distance = (policy.regress(observation()) - policy.normalise(decision.chunk)).abs().mean()
    torch.testing.assert_close(policy(batch)[0], distance)
    policy.save_pretrained(tmp_path / "saved")
    assert torch.equal(sampled(policies.load_policy(tmp_path / "saved"), 0.0).chunk, decision.chunk)


def test_without_a_state(tmp_path: Path) -> None:
    policy = opened(publish(tmp_path / "blind"))
    assert policy.config.state_dim is None
    seen = observation()
    assert torch.equal(policy.logits(seen), policy.logits(replace(seen, state=seen.state + 1)))


def test_every_input_matters(policy: OpenVLAOFT) -> None:
    seen = observation()
    base = policy.logits(seen)
    changes = [replace(seen, state=seen.state / 2), replace(seen, instruction=("push the blue cube",) * 2)]
    changes += [replace(seen, images={**seen.images, name: 255 - seen.images[name]}) for name in CAMERAS]
    for changed in changes:
        assert (policy.logits(changed) - base).abs().amax((1, 2, 3)).min() > 1e-3


# A policy


def test_fulfils_the_contract(policy: OpenVLAOFT) -> None:
    assert check_policy(policy, observation(), action_dim=tiny.D) == []


@pytest.mark.parametrize("temperature", [0.5, 1.6])
def test_log_prob_reproduces_that_of_sampling(policy: OpenVLAOFT, temperature: float) -> None:
    decision = sampled(policy, temperature)
    again = policy.log_prob(observation(), decision.trace, temperature=temperature)
    torch.testing.assert_close(again, decision.log_prob, rtol=1e-5, atol=1e-5)
    assert again.requires_grad and again.shape == (2, tiny.K, tiny.D) and decision.log_prob.std() > 0.1
    alone = policy.log_prob(observation()[[0]], decision.trace[:1], temperature=temperature)
    torch.testing.assert_close(alone, again[:1], rtol=1e-4, atol=1e-4)  # what pads the shorter sentence is not seen


def test_actions_find_their_own_bins(policy: OpenVLAOFT) -> None:
    bins = torch.arange(255).view(1, -1, 1).expand(1, 255, tiny.D)
    unit = policy.normalise(policy.decode_actions(bins))
    assert torch.equal(torch.bucketize(unit, policy.edges, right=True) - 1, bins)
    ends = policy.unnormalise(torch.tensor([-1.0, 1.0]).view(2, 1, 1).expand(2, 1, tiny.D))[:, 0]
    torch.testing.assert_close(ends, torch.tensor([[-0.5, -0.25, -1.0], [0.5, 0.75, 1.0]]))


def test_imitation_loss_is_the_cross_entropy_of_the_tokens(policy: OpenVLAOFT) -> None:
    decision = sampled(policy)
    mask = torch.tensor([[True, True], [True, False]])
    loss, metrics = policy(ImitationBatch(observation(), decision.chunk, mask))
    log_prob = policy.log_prob(observation(), decision.trace.clamp(max=254), temperature=1.0)
    torch.testing.assert_close(loss, -(log_prob.mean(-1) * mask).sum() / 3)
    assert metrics.keys() == {"loss", "action_error"}


def test_bfloat16_and_checkpointing_are_settings(checkpoint: Path, policy: OpenVLAOFT) -> None:
    half, again = opened(checkpoint, precision="bfloat16"), opened(checkpoint, checkpointing=True)
    exact = policy.logits(observation())
    difference = (half.logits(observation()) - exact).abs()
    assert 0 < difference.max() < 0.5 and {p.dtype for p in half.parameters()} == {torch.float32}
    decision = sampled(half)
    torch.testing.assert_close(
        half.log_prob(observation(), decision.trace, temperature=1.0), decision.log_prob, rtol=1e-5, atol=1e-5
    )
    logits = again.eval().logits(observation())
    assert again.language_model.model.layers[0].training and torch.equal(logits, exact)
    gradients = [torch.autograd.grad(x.square().sum(), p.siglip.embeddings.patch_embedding.weight)[0]
                 for x, p in ((exact, policy), (logits, again))]  # fmt: skip
    torch.testing.assert_close(gradients[0], gradients[1])


def test_low_rank_changes_learn_and_merge(checkpoint: Path, tmp_path: Path) -> None:
    policy = opened(checkpoint, lora_rank=4)
    assert torch.equal(policy.logits(observation()), opened(checkpoint).logits(observation()))
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    layers = [name for name, layer in opened(checkpoint).named_modules() if isinstance(layer, nn.Linear)]
    heads = {f"proprio_projector.fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    changed = {name for name in layers if not name.startswith(("proprio_projector", "language_model.lm_head"))}
    assert trained == heads | {f"{name}.lora_{side}.default.weight" for name in changed for side in "AB"}
    frozen = {name: p.clone() for name, p in policy.named_parameters() if name not in trained}
    batch = ImitationBatch(observation(), torch.zeros(2, tiny.K, tiny.D), torch.ones(2, tiny.K, dtype=torch.bool))
    config = FitConfig(optimizer="adamw", steps=12, batch_size=2, lr=1e-2, warmup=1)
    before = policy(batch)[0].item()
    with RunLog(tmp_path, quiet=True) as log:
        fit(policy, lambda step: batch, config, folder=tmp_path, name="imitation", log=log)
    assert policy(batch)[0].item() < before - 0.5
    assert frozen and all(torch.equal(policy.get_parameter(name), before) for name, before in frozen.items())
    learned = policy.logits(observation())
    policy.save_pretrained(tmp_path / "low-rank")
    assert torch.equal(policies.load_policy(tmp_path / "low-rank").logits(observation()), learned)
    whole = policy.merged()
    assert whole.config.lora_rank == 0 and whole.state_dict().keys() == opened(checkpoint).state_dict().keys()
    assert all(parameter.requires_grad for parameter in whole.parameters())
    torch.testing.assert_close(whole.logits(observation()), learned, rtol=1e-4, atol=1e-4)


def test_low_rank_changes_practise_and_save_activations(checkpoint: Path) -> None:
    """A step of GRPO changes them and the heads alone, and finds the same gradients where activations are not kept."""
    plain, lean = opened(checkpoint, lora_rank=4), opened(checkpoint, lora_rank=4, checkpointing=True)
    lean.load_state_dict(plain.state_dict())
    parameters = [trained_parameters(policy, ()) for policy in (plain, lean)]
    decision = sampled(plain)
    gradients = [
        torch.autograd.grad(policy.log_prob(observation(), decision.trace, temperature=1.0).sum(), its)
        for policy, its in zip((plain, lean), parameters, strict=True)
    ]
    torch.testing.assert_close(gradients[0], gradients[1])
    generator = torch.Generator()
    dream = ImaginedEnv(Dream(), Dream(), SPEC, observation(), [0, 1], generator=generator)
    cfg = GRPOConfig(
        groups=2, group_size=8, minibatches=1, warmup=0, max_resamples=2, min_group_success=0.01, max_group_success=0.99
    )
    groups = play_groups(dream, plain, [0, 1], cfg, generator=generator.manual_seed(0), temperature=0.5)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    update(plain, torch.optim.SGD(parameters[0], lr=1.0), groups, advantages(groups, cfg, generator), cfg, generator)
    changed = {name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, before[name])}
    assert groups.kept and changed  # at first only B: while it is zero, A has no gradient
    assert all("lora_B" in name or name.startswith("proprio_projector") for name in changed)


def test_low_rank_changes_need_peft(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'pip install "wmpo\[hub\]"'):
        opened(checkpoint, lora_rank=4)


class Dream:
    """A world that stands still, judged by how far its first pictures' brightness is from what was done."""

    clip_length, threshold = 1, 0.5

    def begin(self, first: Observation) -> Any:
        return first.images, first.state

    def imagine(self, memory: Any, chunk_BKD: Tensor, generator: torch.Generator) -> tuple[Any, Any]:
        pictures = {name: frame[:, None].repeat(1, tiny.K, 1, 1, 1) for name, frame in memory[0].items()}
        pictures["front"] = (pictures["front"] * 0) + (chunk_BKD[:, :, :1, None, None] > 0).to(torch.uint8) * 255
        return memory, (pictures, memory[1][:, None].repeat(1, tiny.K, 1))

    def decode(self, latents: Any) -> tuple[dict[str, Tensor], Tensor]:
        return latents

    def select(self, memory: Any, rows: Any) -> Any:
        return {name: frame[rows] for name, frame in memory[0].items()}, memory[1][rows]

    def score(self, clips_BLCHW: Tensor, instruction: tuple[str, ...]) -> Tensor:
        return clips_BLCHW.float().mean((1, 2, 3, 4)) / 255


SPEC = EnvSpec({name: (28, 28) for name in CAMERAS}, tiny.S, tiny.D, tiny.K, 5)


def test_practises_in_imagination(policy: OpenVLAOFT, tmp_path: Path) -> None:
    policy, generator = copy.deepcopy(policy), torch.Generator()
    dream = ImaginedEnv(Dream(), Dream(), SPEC, observation(), [0, 1], generator=generator)
    cfg = GRPOConfig(
        iterations=6, groups=2, group_size=8, minibatches=1, lr=2e-3, warmup=0, temperature=1.6, max_resamples=2,
        min_group_success=0.01, max_group_success=0.99,
    )  # fmt: skip
    groups = play_groups(dream, policy, [0, 1], cfg, generator=generator.manual_seed(0), temperature=cfg.temperature)
    assert groups.kept == 2
    optimizer = torch.optim.SGD(trained_parameters(policy, ()), lr=0)
    metrics = update(policy, optimizer, groups, advantages(groups, cfg, generator), replace(cfg, lr=0.0), generator)
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-4) and metrics["clip_fraction"] == 0
    assert metrics["grad_norm"] > 0
    with RunLog(tmp_path, quiet=True) as log:
        practise(dream, policy, [0, 1], cfg, seed=0, generator=generator, folder=tmp_path, name="practice", log=log)
    after = play_groups(dream, policy, [0, 1], cfg, generator=generator.manual_seed(0), temperature=cfg.temperature)
    assert after.success_rate > groups.success_rate


# Images


def pictures(height: int, width: int) -> Tensor:
    noise = np.random.RandomState(height).randint(0, 256, (2, 3, height, width))
    return torch.from_numpy(noise.astype(np.uint8))


def by_pil(picture: Tensor, change: Callable[[Any], Any]) -> np.ndarray:
    """In PIL's floats, channel by channel, so that it neither clips nor rounds between its two passes."""
    from PIL import Image

    channels = [change(Image.fromarray(channel.numpy().astype(np.float32))) for channel in picture]
    return np.stack([np.asarray(channel) for channel in channels])


@pytest.mark.parametrize("kernel", ["lanczos", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(64, 48), (20, 31)])
def test_resizing_equals_pil_within_one_level(kernel: str, height: int, width: int) -> None:
    Image = pytest.importorskip("PIL.Image")
    method = Image.Resampling[kernel.upper()]
    for picture, ours in zip(pictures(height, width), images.resize(pictures(height, width), 32, kernel), strict=True):
        theirs = by_pil(picture, lambda channel: channel.resize((32, 32), method))
        assert np.abs(ours.numpy() - np.clip(theirs, 0, 255)).max() <= 0.5 + 1e-3  # only rounded


def test_the_centre_crop_equals_pil_within_one_level() -> None:
    Image = pytest.importorskip("PIL.Image")
    side, share = 32, 0.9**0.5
    offset = (1 - share) / 2 * (side - 1) + 0.5 - share / 2  # PIL counts from pixels' corners
    matrix = (share, 0, offset, 0, share, offset)
    for picture, ours in zip(pictures(side, side), images.centre_crop(pictures(side, side), 0.9), strict=True):
        theirs = by_pil(picture, lambda channel: channel.transform((side, side), Image.Transform.AFFINE, matrix, 2))
        difference = theirs * 255.5 / 255 - ours.numpy()
        assert difference.min() > -1e-2 and difference.max() < 1 + 1e-2  # only rounded down
    plain = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(images.centre_crop(plain, 0.9), plain)
    exact = images.centre_crop(pictures(side, side), 0.9)
    with torch.autocast("cpu", torch.bfloat16):  # the networks' arithmetic does not reach the pixels
        assert torch.equal(images.centre_crop(pictures(side, side), 0.9), exact)


def test_images_of_any_size_are_seen(policy: OpenVLAOFT, checkpoint: Path) -> None:
    seen = observation()
    large = replace(seen, images={name: frame.repeat_interleave(3, -1) for name, frame in seen.images.items()})
    assert policy.logits(large).shape == (2, tiny.K, tiny.D, 256)
    assert not torch.allclose(opened(checkpoint, crop=0.9).logits(seen), policy.logits(seen), atol=1e-3)


def test_pixels_are_normalised_as_the_image_processor_says(tmp_path: Path) -> None:
    folder = publish(tmp_path / "published")
    described = {"means": [[0.5] * 3, [0.4] * 3], "stds": [[0.2] * 3, [0.3] * 3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    config = opened(folder).config
    assert (config.dino.mean, config.siglip.std) == ((0.5,) * 3, (0.3,) * 3)


# Files


def test_saves_opens_and_fits(policy: OpenVLAOFT, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["family"] == "openvla_oft"
    again = fitting(policies.load_policy, tmp_path, SPEC, CPU)
    assert again.config == policy.config and torch.equal(again.logits(observation()), policy.logits(observation()))
    larger = {name: (64, 64) for name in CAMERAS}
    fitting(policies.load_policy, tmp_path, replace(SPEC, cameras=larger), CPU)  # any size will do
    for spec, text in (
        (replace(SPEC, action_dim=7), "3 action dimensions, but here there are 7"),
        (replace(SPEC, state_dim=0), "4 state dimensions"),
        (replace(SPEC, cameras={"front": (28, 28)}), "looks through the camera 'wrist'"),
    ):
        with pytest.raises(UserError, match=text):
            fitting(policies.load_policy, tmp_path, spec, CPU)


def test_families(tmp_path: Path) -> None:
    for config, text in (
        ('{"family": "opnvla_oft"}', "did you mean openvla_oft"),
        ('{"model_type": "llava"}', "There is no policy family 'llava'"),
        ("[]", "describes no policy"),
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(UserError, match=text):
            policies.load_policy(tmp_path)
    assert not hasattr(MiniVLA, "family")  # the default: policies saved so far have no family


def test_a_run_begins_with_a_published_one(tmp_path: Path) -> None:
    folder = publish(tmp_path / "blind")
    spec = replace(SPEC, cameras={"front": (28, 28)})
    policy = policies.build_policy(PolicyConfig(pretrained=str(folder), chunk=tiny.K + 1), spec)
    seen = replace(observation(), images={"front": observation().images["front"]})
    batch = ImitationBatch(seen, torch.zeros(2, tiny.K + 1, tiny.D), torch.ones(2, tiny.K + 1, dtype=torch.bool))
    policy(batch)[0].backward()
    assert policy.act(seen, temperature=1.0, generator=torch.Generator()).chunk.shape == (2, tiny.K + 1, tiny.D)
    with pytest.raises(UserError, match="action dimensions"):
        policies.build_policy(PolicyConfig(pretrained=str(folder)), replace(spec, action_dim=7))


def test_an_adapter_is_added_to_the_weights(checkpoint: Path, policy: OpenVLAOFT, tmp_path: Path) -> None:
    name = "vision_backbone.featurizer.blocks.0.attn.qkv"
    up, down = torch.randn(3 * tiny.VISION, 2), torch.randn(2, tiny.VISION)
    prefix = f"base_model.model.{name}.lora_"
    save_file({f"{prefix}A.weight": down, f"{prefix}B.weight": up}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 16, "r": 2, "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="nobody knows what the actions of the policy with this adapter mean"):
        opened(checkpoint, adapter=tmp_path)
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(tiny.STATISTICS))
    _, key, value = (8 * up @ down).chunk(3)
    changed = opened(checkpoint, adapter=tmp_path).dino.encoder.layer[0].attention
    base = policy.dino.encoder.layer[0].attention
    torch.testing.assert_close(changed.k_proj.weight, base.k_proj.weight + key)
    torch.testing.assert_close(changed.v_proj.weight, base.v_proj.weight + value)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(UserError, match="use_dora"):
        opened(checkpoint, adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {f"{prefix}A.weight": down[:, :3].clone(), f"{prefix}B.weight": up}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match="another shape"):
        opened(checkpoint, adapter=tmp_path)


class Layers(nn.Module):
    """Some layers, with an output embedding as a language model has it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "openvla"}

    def get_input_embeddings(self) -> nn.Module:
        return nn.Identity()

    def get_output_embeddings(self) -> Any:
        return self.language_model.lm_head


def layers(tensors: dict[str, Tensor]) -> nn.Module:
    """The linear and convolutional layers of a checkpoint alone, under its names."""
    root = Layers()
    for name, tensor in tensors.items():
        *path, last, kind = name.split(".")
        if kind == "weight" and tensor.ndim in (2, 4) and last != "embed_tokens":
            parent = root
            for step in path:
                if not hasattr(parent, step):
                    parent.add_module(step, nn.Module())
                parent = parent.get_submodule(step)
            layer: Any = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
            if tensor.ndim == 4:
                layer = nn.Conv2d(tensor.shape[1], tensor.shape[0], tensor.shape[2:], tensor.shape[2:], bias=False)
            layer.weight.data = tensor
            parent.add_module(last, layer)
    return root


def test_an_adapter_of_peft_does_what_merging_it_there_does(
    checkpoint: Path, policy: OpenVLAOFT, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=8, init_lora_weights="gaussian",
        target_modules=["qkv", "proj", "fc1", "fc2", "fc3", "q_proj", "v_proj", "down_proj", "lm_head"],
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = peft.get_peft_model(layers(tiny.checkpoint()), config)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    run = tmp_path / "run"
    theirs.save_pretrained(run / "lora_adapter")
    stored = load_file(run / "lora_adapter" / "adapter_model.safetensors")
    assert {tensor.ndim for tensor in stored.values()} == {2, 4}
    assert "base_model.model.language_model.lm_head.base_layer.weight" in stored
    merged = publish(tmp_path / "merged", "proprio_projector")
    for file in ("dataset_statistics.json", "proprio_projector.safetensors"):
        shutil.copy(merged / file, run / file)
    edit(merged, lambda tensors: tensors.update(theirs.merge_and_unload().state_dict()))
    logits = opened(checkpoint, adapter=run / "lora_adapter").logits(observation())
    torch.testing.assert_close(logits, opened(merged).logits(observation()), rtol=1e-4, atol=1e-4)
    assert (logits - policy.logits(observation())).abs().max() > 0.1

    # What the fine-tuning has stored beside the adapter counts, not what the base has.
    rewrite(run, "dataset_statistics.json", **action(q99=[90.0, 0.5, 1.0]))
    (run / "proprio_projector.safetensors").unlink()
    tuned = opened(checkpoint, adapter=run / "lora_adapter")
    assert tuned.action_range()[1].tolist() == [90.0, 0.5, 1.0] and tuned.config.state_dim is None
    (run / "proprio_projector--9_checkpoint.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=r"convert it once to proprio_projector\.safetensors"):
        opened(checkpoint, adapter=run / "lora_adapter")


def test_what_a_tokenizer_once_cut_and_padded_is_forgotten(
    checkpoint: Path, tmp_path: Path, policy: OpenVLAOFT
) -> None:
    shutil.copytree(checkpoint, tmp_path / "cut")
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(tmp_path / "cut" / "tokenizer.json"))
    for ours, theirs in zip(
        opened(tmp_path / "cut").prompt.ids(tiny.SENTENCES, 6), policy.prompt.ids(tiny.SENTENCES, 6), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_last_product_is_in_float32(checkpoint: Path) -> None:
    logits = opened(checkpoint, precision="bfloat16").logits(observation())
    assert not torch.equal(logits, logits.to(torch.bfloat16).float())


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Store the checkpoint in one file, changed."""
    tensors = tiny.checkpoint()
    change(tensors)
    for path in folder.glob("model*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors")


def rewrite(folder: Path, file: str, **changes: Any) -> None:
    described = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**described, **changes}))


def truncate(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(name: str, *gone: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file in gone:
            (folder / file).unlink()
        (folder / name).write_bytes(pickle.dumps({}))

    return change


def action(**changes: Any) -> dict[str, Any]:
    return {"tiny": {"action": {**tiny.STATISTICS["tiny"]["action"], **changes}}}


PROJECTOR, NORM = "projector.fc1.weight", "vision_backbone.featurizer.blocks.0.norm1.weight"
SINGLE = ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "truncated or holds something else than tensors"),
    "pickle with the name of tensors": (pickled(SINGLE[1]), "truncated or holds something else than tensors"),
    "pickled weights": (pickled("pytorch_model.bin", *SINGLE), "is a pickle, which can run code"),
    "pickled part": (pickled("action_head--50000_checkpoint.pt"), r"convert it once to action_head\.safetensors"),
    "film": (pickled("vision_backbone--50000_checkpoint.pt"), "FiLM"),
    "no weights": (lambda folder: [(folder / file).unlink() for file in SINGLE], "does not exist: the checkpoint is"),
    "a lost shard": (lambda folder: (folder / SINGLE[1]).unlink(), "does not exist: the checkpoint is incomplete"),
    "wrong index": (lambda folder: rewrite(folder, SINGLE[0], weight_map={PROJECTOR: SINGLE[1]}), "disagree about"),
    "missing": (lambda folder: edit(folder, lambda tensors: tensors.pop(NORM)), f"lacks the tensor '{NORM}'"),
    "surplus": (
        lambda folder: edit(folder, lambda t: t.update(extra=t[NORM].clone())),
        "does not have, 'extra' for one",
    ),
    "shape": (
        lambda folder: edit(folder, lambda t: t.update({PROJECTOR: torch.zeros(3, 4)})),
        r"another architecture: the tensor 'projector.fc1.weight' has the shape \(3, 4\)",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no OpenVLA-OFT"),
    "another model": (
        lambda folder: rewrite(folder, "config.json", model_type="llava"),
        "another architecture.*'llava'",
    ),
    "another tower": (lambda f: rewrite(f, "config.json", vision_backbone_id="clip-vit-l"), "only 'dinosiglip"),
    "other bins": (lambda folder: rewrite(folder, "config.json", n_action_bins=128), "n_action_bins 128"),
    "no llama": (lambda f: rewrite(f, "config.json", text_config={"model_type": "phi"}), "describes no Llama"),
    "rope": (
        lambda f: rewrite(f, "config.json", text_config={**tiny.CONFIG["text_config"], "rope_scaling": {"factor": 2}}),
        "a Llama with rope_scaling",
    ),
    "no statistics": (lambda folder: (folder / "dataset_statistics.json").unlink(), "what the policy's actions mean"),
    "two data sets": (
        lambda f: rewrite(f, "dataset_statistics.json", other={}),
        "choose one with statistics=, of tiny",
    ),
    "infinite": (
        lambda f: rewrite(f, "dataset_statistics.json", **action(q99=[float("inf"), 0.75, 1.0])),
        "statistics of action must be finite",
    ),
    "uneven": (lambda f: rewrite(f, "dataset_statistics.json", **action(q99=[0.5, 0.75])), "must be of one length"),
    "no quantiles": (lambda f: rewrite(f, "dataset_statistics.json", **action(q01=None)), "need q01 and q99"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "needs the tokenizer"),
    "broken tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{"), "damaged or no tokenizer"),
    "pixels": (
        lambda folder: (folder / "preprocessor_config.json").write_text('{"means": [[1, 2]], "stds": [[1, 2]]}'),
        "for either vision tower",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    change, text = REFUSED[case]
    folder = publish(tmp_path / "published")
    change(folder)
    with pytest.raises(UserError, match=text) as told:
        opened(folder)
    assert "\n" not in str(told.value)


def test_statistics_of_another_data_set_or_none_for_the_state(tmp_path: Path) -> None:
    folder = publish(tmp_path / "published", "proprio_projector")
    with pytest.raises(UserError, match="no data set with statistics 'tinny': did you mean tiny"):
        opened(folder, statistics="tinny")
    rewrite(folder, "dataset_statistics.json", **action())
    with pytest.raises(UserError, match="lacks those of proprio"):
        opened(folder)
