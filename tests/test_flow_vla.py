"""pi0 and SmolVLA: tiny random ones, from the folders in which others publish them to a practised policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wmpo.config import GRPOConfig
from wmpo.contracts import check_policy
from wmpo.data.clips import ImitationBatch
from wmpo.errors import UserError
from wmpo.families import saved_family
from wmpo.grpo import advantages, play_groups, update
from wmpo.policies import build_policy, load_policy, match_actions
from wmpo.policies.flow_vla import FlowVLA
from wmpo.policies.published import standardizer
from wmpo.policies.settings import FlowConfig, FlowVLASettings
from wmpo.policies.smolvla import patch_places
from wmpo.types import EnvSpec, Observation, Outcome

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SIZE, S, D, K = 16, 3, 2, 3
SPEC = EnvSpec({"front": (SIZE, SIZE), "wrist": (SIZE, SIZE)}, S, D, K, 5)
STATE, ACTION = ([0.1, 0.2, 0.3], [1.0, 2.0, 0.5]), ([0.1, -0.1], [0.4, 0.3])


def write_tokenizer(folder: Path) -> None:
    words = ["[pad]", "[unknown]", "<bos>", "push", "the", "red", "blue", "cube", "\n"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unknown]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    tokenizer.save(str(folder / "tokenizer.json"))


def tiny_pi0(folder: Path) -> Path:
    gemma = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    vision = {
        "model_type": "siglip_vision_model", "intermediate_size": 32, "hidden_size": 16, "patch_size": 8,
        "image_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2, "vision_use_head": False,
    }  # fmt: skip
    text = {"model_type": "gemma", "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64, **gemma}
    config = transformers.PI0Config(
        vlm_config={
            "model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": 16,
            "image_token_id": 63,
        },
        dit_config={"model_type": "gemma", "hidden_size": 8, "intermediate_size": 16, **gemma},
        chunk_size=5, max_state_dim=6, max_action_dim=6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.PI0ForConditionalGeneration(config)
    shake(model)
    model.save_pretrained(folder)
    numbers = {"state_mean": STATE[0], "state_std": STATE[1], "actions_mean": ACTION[0], "actions_std": ACTION[1]}
    (folder / "processor_config.json").write_text(json.dumps(numbers))
    write_tokenizer(folder)
    return folder


def tiny_smolvla(folder: Path) -> Path:
    """Built from LeRobot's names and shapes, not from our own network."""
    (folder / "vlm").mkdir(parents=True)
    text = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": SIZE, "patch_size": 4}  # fmt: skip
    vlm = transformers.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, image_token_id=63)
    (folder / "vlm" / "config.json").write_text(json.dumps(vlm.to_dict(), default=str))
    write_tokenizer(folder / "vlm")
    torch.manual_seed(0)
    backbone = transformers.SmolVLMForConditionalGeneration(vlm)
    backbone.model.text_model.layers = backbone.model.text_model.layers[:2]
    W = 24  # 32 * 0.75
    shapes = {
        "state_proj.weight": (32, 6), "state_proj.bias": (32,), "action_in_proj.weight": (W, 6),
        "action_in_proj.bias": (W,), "action_out_proj.weight": (6, W), "action_out_proj.bias": (6,),
        "action_time_mlp_in.weight": (W, 2 * W), "action_time_mlp_in.bias": (W,),
        "action_time_mlp_out.weight": (W, W), "action_time_mlp_out.bias": (W,),
    }  # fmt: skip
    for i, key_width in enumerate((W, 16)):  # the second layer attends to 2 heads of 8 of the other model
        layer = f"vlm_with_expert.lm_expert.layers.{i}"
        attention = {"q_proj": (32, W), "k_proj": (16, key_width), "v_proj": (16, key_width), "o_proj": (W, 32)}
        shapes |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (256, W) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (W, 256)}
        shapes |= {f"{layer}.{name}_layernorm.weight": (W,) for name in ("input", "post_attention")}
    shapes["vlm_with_expert.lm_expert.norm.weight"] = (W,)
    tensors = {f"model.{name}": torch.randn(shape) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    tensors |= {f"model.vlm_with_expert.vlm.{name}": tensor.clone() for name, tensor in backbone.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "type": "smolvla", "chunk_size": 5, "max_state_dim": 6, "max_action_dim": 6, "num_vlm_layers": 2,
        "resize_imgs_with_padding": [SIZE, SIZE], "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "input_features": {
            "observation.state": {"type": "STATE", "shape": [S]},
            **{f"observation.images.{name}": {"type": "VISUAL", "shape": [3, SIZE, SIZE]} for name in SPEC.cameras},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [D]}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    numbers = {
        f"{name}.{part}": torch.tensor(row)
        for name, rows in (("observation.state", STATE), ("action", ACTION))
        for part, row in zip(("mean", "std"), rows, strict=True)
    }
    for pipeline, step in (("pre", "normalizer_processor"), ("post", "unnormalizer_processor")):
        state_file = f"policy_{pipeline}processor_step_5_{step}.safetensors"
        found = {
            "registry_name": step,
            "config": {"norm_map": {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}},
            "state_file": state_file,
        }
        (folder / f"policy_{pipeline}processor.json").write_text(json.dumps({"steps": [{}, found]}))
        save_file(numbers, folder / state_file)
    return folder


def shake(model: torch.nn.Module) -> None:
    """Weights so large that every part matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(1, parameter.shape[-1]) ** 0.5)


MAKERS = {"pi0": tiny_pi0, "smolvla": tiny_smolvla}
FAMILIES = pytest.mark.parametrize("family", MAKERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("published") / name) for name, make in MAKERS.items()}


def opened(folder: Path, noise: str = "sde", **settings: Any) -> FlowVLA:
    flow = FlowConfig(steps=2, noise=noise)  # type: ignore[arg-type]
    config = FlowVLASettings(pretrained=str(folder), chunk=K, flow=flow, **settings)
    torch.manual_seed(1)
    policy: FlowVLA = build_policy(config, SPEC)
    return policy


def observation(batch: int, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    images = {
        name: torch.randint(0, 256, (batch, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        for name in SPEC.cameras
    }
    sentences = tuple("push the red cube" if i % 2 else "push cube" for i in range(batch))
    return Observation(images, torch.randn(batch, S, generator=generator), sentences)


@FAMILIES
@pytest.mark.parametrize("noise", ["sde", "learned"])
def test_a_published_one_keeps_the_contract(folders: dict[str, Path], family: str, noise: str) -> None:
    policy = opened(folders[family], noise)
    assert saved_family("policy", folders[family], "") == policy.family == family and policy.chunk == K
    assert check_policy(policy, observation(4), D) == []
    decision = policy.act(observation(4), temperature=1.0, generator=torch.Generator().manual_seed(0))
    assert decision.trace.shape == (4, 3, K, 6) and decision.log_prob.shape == (4, K, 2 * D)


@FAMILIES
def test_all_that_is_seen_matters(folders: dict[str, Path], family: str) -> None:
    policy, seen = opened(folders[family]), observation(2)

    def choice(observation: Observation) -> Tensor:
        return policy.act(observation, temperature=0.0, generator=torch.Generator().manual_seed(0)).trace[:, -1]

    base = choice(seen)
    changes = [replace(seen, instruction=("push the blue cube",) * 2), replace(seen, state=seen.state + 1)]
    changes += [replace(seen, images={**seen.images, name: 255 - seen.images[name]}) for name in SPEC.cameras]
    for changed in changes:
        assert (choice(changed) - base).abs().max() > 1e-5


@FAMILIES
def test_statistics_scale_actions(folders: dict[str, Path], family: str) -> None:
    policy = opened(folders[family])
    decision = policy.act(observation(3), temperature=0.0, generator=torch.Generator().manual_seed(0))
    expected = decision.trace[:, -1, :, :D] * torch.tensor(ACTION[1]) + torch.tensor(ACTION[0])
    torch.testing.assert_close(decision.chunk, expected)


@FAMILIES
def test_imitation_and_files(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    policy = opened(folders[family], "learned").train()
    batch = ImitationBatch(observation(4), torch.rand(4, K, D) - 0.5, torch.ones(4, K, dtype=torch.bool))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        loss, _ = policy(batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and not any("vlm.model" in name or "model.vlm" in name for name in changed)

    policy.eval().save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    assert saved_family("policy", tmp_path, "") == family and loaded.config == policy.config
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    one, other = (
        each.act(observation(3), temperature=1.0, generator=torch.Generator().manual_seed(0))
        for each in (policy, loaded)
    )
    assert torch.equal(one.trace, other.trace) and torch.equal(one.log_prob, other.log_prob)


class Left:
    """Success where the first action of the chunk points left. One chunk."""

    spec = SPEC

    def reset(self, initial_states: Sequence[int]) -> Observation:
        return observation(len(initial_states))

    def step(self, rows: Sequence[int], chunk_AKD: Tensor) -> Outcome:
        A = len(rows)
        images = {name: torch.zeros(A, K, 3, SIZE, SIZE, dtype=torch.uint8) for name in SPEC.cameras}
        success = torch.zeros(A, K, dtype=torch.bool)
        success[:, -1] = chunk_AKD[:, 0, 0] < chunk_AKD[:, 0, 0].median()
        return Outcome(images, torch.zeros(A, K, S), success, torch.ones(A, dtype=torch.bool))

    def close(self) -> None: ...


@FAMILIES
@pytest.mark.parametrize("noise", ["sde", "learned"])
def test_practice_changes_what_is_likely(folders: dict[str, Path], family: str, noise: str) -> None:
    """After a step of GRPO, what was rewarded is more likely than before, compared with what was not."""
    policy = opened(folders[family], noise)
    cfg = GRPOConfig(
        groups=2, group_size=8, minibatches=1, warmup=0, min_group_success=0.01, max_group_success=0.99, temperature=1.0
    )
    generator = torch.Generator().manual_seed(0)
    groups = play_groups(Left(), policy, [0, 1], cfg, generator=generator, temperature=1.0)
    assert groups.kept
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-4)
    metrics = update(policy, optimizer, groups, advantages(groups, cfg, generator), cfg, generator)
    assert metrics["grad_norm"] > 0 and metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-3)
    batch = groups.rollout
    seen, trace, _ = batch.decisions(torch.arange(len(batch)))
    gain = (policy.log_prob(seen, trace, temperature=1.0) - batch.log_prob[:, 0]).sum((1, 2)).detach()
    assert gain[batch.success].mean() > gain[~batch.success].mean()


def test_pi0_is_that_of_transformers(folders: dict[str, Path]) -> None:
    """The deterministic sampler finds the actions that transformers' own finds from equal noise."""
    policy = opened(folders["pi0"])
    seen = observation(2)
    decision = policy.act(seen, temperature=0.0, generator=torch.Generator().manual_seed(0))
    noise = torch.randn((2, 3, K, 6), generator=torch.Generator().manual_seed(0))[:, 0]
    tokens, mask = policy._tokens(seen.instruction)
    pictures = torch.full((2, 2 * 4), 63)
    mean, std = torch.tensor(STATE)
    state = torch.cat([(seen.state - mean) / std, torch.zeros(2, 3)], 1)
    model = policy.network.model
    model.config.chunk_size = K
    answer = model.sample_actions(
        state=state, noise=noise, num_steps=2, input_ids=torch.cat([pictures, tokens], 1),
        attention_mask=torch.cat([torch.ones(2, 8, dtype=torch.long), mask.long()], 1),
        pixel_values=torch.stack([image.float() / 127.5 - 1 for image in seen.images.values()], 1),
        pixel_attention_mask=torch.ones(2, 2, dtype=torch.bool),
    )  # fmt: skip
    torch.testing.assert_close(decision.trace[:, -1], answer, rtol=1e-4, atol=1e-5)


def joint_pass(
    network: Any, pixels: Tensor, tokens: Tensor, mask: Tensor, state: Tensor, x: Tensor, time: Tensor
) -> Tensor:
    """SmolVLA's velocity as in its training: both transformers side by side, one mask of blocks, nothing kept."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    vlm, expert = network.vlm_with_expert.vlm.model, network.vlm_with_expert.lm_expert
    seen = torch.cat(
        [vlm.connector(vlm.vision_model(pixel_values=image).last_hidden_state) for image in pixels.unbind(1)], 1
    )
    words = vlm.text_model.embed_tokens(tokens)
    scale = words.shape[-1] ** 0.5
    first = torch.cat([seen * scale, words * scale, network.state_proj(state)[:, None]], 1)
    period = 4e-3 * (4.0 / 4e-3) ** torch.linspace(0, 1, network.width // 2)
    angle = 2 * torch.pi * time[:, None] / period
    waves = torch.cat([angle.sin(), angle.cos()], 1)[:, None].expand(-1, x.shape[1], -1)
    second = network.action_time_mlp_in(torch.cat([network.action_in_proj(x), waves], 2))
    second = network.action_time_mlp_out(torch.nn.functional.silu(second))

    P, Q = first.shape[1], second.shape[1]
    ones = torch.ones(len(x), 1, dtype=torch.bool)
    valid = torch.cat([ones.expand(-1, seen.shape[1]), mask, ones, ones.expand(-1, Q)], 1)
    block = torch.tensor([0] * (P - 1) + [1] * (1 + Q)).cumsum(0)  # tokens see their own block and those before
    sees = (block[None, :] <= block[:, None]) & valid[:, None] & valid[:, :, None]
    places = valid.long().cumsum(1) - 1

    def turned(part: Tensor, at: Tensor) -> Tensor:
        angle = (at[..., None] / 10_000 ** (torch.arange(4) / 4)).repeat(1, 1, 2)
        return apply_rotary_pos_emb(part, part, angle.cos(), angle.sin(), unsqueeze_dim=2)[0]

    def attend(query: Tensor, key: Tensor, value: Tensor, sees: Tensor) -> Tensor:
        key, value = key.repeat_interleave(2, 2), value.repeat_interleave(2, 2)
        score = torch.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5
        weight = score.masked_fill(~sees[:, None], -1e30).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weight, value).flatten(2)

    def heads(projection: Any, x: Tensor) -> Tensor:
        return projection(x).unflatten(-1, (-1, 8))

    def block_of(layer: Any, x: Tensor, found: Tensor) -> Tensor:
        x = x + layer.self_attn.o_proj(found)
        return x + layer.mlp(layer.post_attention_layernorm(x))

    for i, (one, two) in enumerate(zip(vlm.text_model.layers, expert.layers, strict=True)):
        a, b = one.input_layernorm(first), two.input_layernorm(second)
        query, key, value = (heads(getattr(one.self_attn, f"{name}_proj"), a) for name in "qkv")
        if i % 2 == 0:
            query, key, value = (
                torch.cat([part, heads(getattr(two.self_attn, f"{name}_proj"), b)], 1)
                for name, part in zip("qkv", (query, key, value), strict=True)
            )
            found = attend(turned(query, places), turned(key, places), value, sees)
            own, other = found[:, :P], found[:, P:]
        else:
            key = turned(key, places[:, :P])
            own = attend(turned(query, places[:, :P]), key, value, sees[:, :P, :P])
            query = turned(heads(two.self_attn.q_proj, b), places[:, P:] - places[:, P:].amin(1, keepdim=True))
            key, value = heads(two.self_attn.k_proj, key.flatten(2)), heads(two.self_attn.v_proj, value.flatten(2))
            other = attend(query, key, value, sees[:, P:, :P])
        first, second = block_of(one, first, own), block_of(two, second, other)
    velocity: Tensor = network.action_out_proj(expert.norm(second))
    return velocity


def test_smolvla_keeps_what_its_training_computes_at_once(folders: dict[str, Path]) -> None:
    policy, seen = opened(folders["smolvla"], patch_positions="exact"), observation(3)
    x, time = torch.randn(3, K, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.6, 0.2])
    tokens, mask = policy._tokens(seen.instruction)
    assert not mask.all()  # some sentences are padded
    pixels = torch.stack([image.float() / 127.5 - 1 for image in seen.images.values()], 1)
    state = torch.cat([seen.state, torch.zeros(3, 3)], 1)
    prefix = policy.network.prefix(pixels, tokens, mask, state)
    expected = joint_pass(policy.network, pixels, tokens, mask, state, x, time)
    for _ in range(2):  # asking changes nothing
        torch.testing.assert_close(policy.network.velocity(prefix, x, time)[0], expected, rtol=1e-4, atol=1e-4)


def copy(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])


def change(edit: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def foreign(folder: Path) -> None:
    (folder / "config.json").write_text('{"type": "act", "model_type": "act"}')


def out_of(tensors: dict[str, Tensor]) -> str:
    return next(name for name in tensors if name.endswith("action_out_proj.weight"))


@FAMILIES
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "truncated|can't be loaded"),
        (change(lambda tensors: tensors.pop(out_of(tensors))), "lacks 1 weights"),
        (change(lambda tensors: tensors.update({"model.more": torch.zeros(1)})), "1 weights"),
        (change(lambda tensors: tensors.update({out_of(tensors): torch.zeros(7, 8)})), "shape"),
        (pickled, "pickle"),
        (foreign, "no policy family 'act'"),
    ],
    ids=["truncated", "missing", "surplus", "shape", "pickle", "foreign"],
)
def test_what_is_wrong_is_told(
    folders: dict[str, Path], family: str, spoil: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    folder = copy(folders[family], tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=said):
        load_policy(folder)


@FAMILIES
def test_another_robot_is_told(folders: dict[str, Path], family: str) -> None:
    config = FlowVLASettings(pretrained=str(folders[family]), chunk=K)
    with pytest.raises(UserError, match="2 action dimensions, but here there are 7"):
        build_policy(config, replace(SPEC, action_dim=7))
    with pytest.raises(UserError, match="3 state dimensions, but here there are 0"):
        build_policy(config, replace(SPEC, state_dim=0))


def test_statistics_must_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    pi0, smolvla = (copy(folders[name], tmp_path / name) for name in MAKERS)
    (pi0 / "processor_config.json").write_text("{}")
    with pytest.raises(UserError, match="no mean and standard deviation of state"):
        load_policy(pi0)
    numbers = next(smolvla.glob("policy_post*.safetensors"))
    save_file({"action.mean": torch.zeros(7), "action.std": torch.ones(7)}, numbers)
    with pytest.raises(UserError, match="statistics of 7 action dimensions, but its policy has 2"):
        load_policy(smolvla)
    (smolvla / "vlm" / "config.json").unlink()
    with pytest.raises(UserError, match="SmolVLM2-500M-Video-Instruct"):
        load_policy(smolvla)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "vlm/../other.safetensors", "a\\b", 7])
def test_a_state_file_lies_in_the_folder(folders: dict[str, Path], tmp_path: Path, name: Any) -> None:
    folder = copy(folders["smolvla"], tmp_path / "it")
    save_file({"action.mean": torch.zeros(D)}, tmp_path / "secret.safetensors")
    pipeline = folder / "policy_postprocessor.json"
    described = json.loads(pipeline.read_text())
    described["steps"][1]["state_file"] = name
    pipeline.write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"names the state_file .*, which is no file in that folder"):
        load_policy(folder)


def test_actions_are_kept_within_what_was_demonstrated(folders: dict[str, Path], tmp_path: Path) -> None:
    """As the statistics say; where they say nothing, in [-1, 1], or so far that a rarely closed gripper is in reach."""
    far = torch.tensor([[-9.0, -9.0], [9.0, 9.0]])
    assert torch.equal(opened(folders["smolvla"]).normalizer.limit_action(far), far.sign())
    degrees = standardizer((torch.zeros(S), torch.ones(S)), (torch.zeros(D), torch.tensor([40.0, 30.0])))
    assert torch.equal(degrees.limit_action(19 * far), 19 * far)
    folder = copy(folders["smolvla"], tmp_path / "it")
    file = next(folder.glob("policy_post*.safetensors"))
    bounds = {"action.min": torch.tensor([-0.2, -3.0]), "action.max": torch.tensor([5.0, 0.4])}
    save_file({**load_file(file), **bounds}, file)
    decision = opened(folder).normalizer.limit_action(far)
    torch.testing.assert_close(decision, torch.stack([bounds["action.min"], bounds["action.max"]]))


def test_what_never_moved_stays_and_does_not_explode() -> None:
    still = standardizer((torch.ones(S), torch.tensor([0.0, 1e-9, 1.0])), (torch.tensor([0.3, 0]), torch.zeros(2)))
    assert still.normalize_state(torch.full((S,), 1.5)).abs().max() <= 0.5
    wild = still.limit_action(still.unnormalize_action(torch.full((D,), 9.0)))
    torch.testing.assert_close(wild, torch.tensor([0.3, 0.0]))


@FAMILIES
def test_a_sentence_that_is_too_long_is_named(folders: dict[str, Path], family: str) -> None:
    policy, seen = opened(folders[family]), observation(2)
    seen = replace(seen, instruction=("push cube", "push the red cube " * 13))
    with pytest.raises(UserError, match=r"'push the red cube .*\.\.\.' has \d+ tokens, and at most 48 can be read"):
        policy.act(seen, temperature=0.0, generator=torch.Generator())


# What LeRobot's folder says


def reading(folder: Path, cameras: tuple[str, ...] = (), shown: tuple[str, ...] = ("front", "wrist")) -> FlowVLA:
    spec = EnvSpec(dict.fromkeys(shown, (SIZE, SIZE)), S, D, K, 5)
    policy: FlowVLA = build_policy(FlowVLASettings(pretrained=str(folder), chunk=K, cameras=cameras), spec)
    return policy


def shown(**levels: int) -> Observation:
    """Pictures of one grey each."""
    images = {name: torch.full((1, 3, SIZE, SIZE), level, dtype=torch.uint8) for name, level in levels.items()}
    return Observation(images, torch.zeros(1, S), ("push cube",))


def acts(policy: FlowVLA, seen: Observation) -> Tensor:
    return policy.act(seen, temperature=0.0, generator=torch.Generator().manual_seed(0)).trace[:, -1]


def test_cameras_go_by_name_and_not_by_order(folders: dict[str, Path]) -> None:
    policy = reading(folders["smolvla"], shown=("wrist", "other", "front"))
    base = acts(policy, shown(front=10, wrist=200))
    assert torch.equal(acts(policy, shown(wrist=200, other=90, front=10)), base)
    assert not torch.allclose(acts(policy, shown(front=200, wrist=10)), base, rtol=0, atol=1e-6)
    mapped = reading(folders["smolvla"], ("wrist=hand", "front=top"), ("hand", "top"))
    assert mapped.config.cameras == ("top", "hand")
    assert torch.equal(acts(mapped, shown(hand=200, top=10)), base)
    alone = reading(folders["smolvla"], ("front=top",), ("hand", "top"))
    assert torch.equal(acts(alone, shown(hand=7, top=10)), acts(alone, shown(hand=70, top=10)))
    nameless = reading(folders["pi0"], ("top", "hand"), ("hand", "top"))
    assert torch.equal(acts(nameless, shown(hand=200, top=10)), acts(reading(folders["pi0"]), shown(a=10, b=200)))


@pytest.mark.parametrize(
    ("family", "cameras", "there", "said"),
    [
        ("smolvla", (), ("front", "hand"), "only front, hand: set policy.cameras to wrist=CAMERA"),
        ("smolvla", (), ("front",), "looks through the camera 'wrist'"),
        ("smolvla", ("hand=wrist", "front"), ("front", "wrist"), "no camera of this policy for policy.cameras 'hand'"),
        ("smolvla", ("front", "wrist=away"), ("front", "wrist"), "looks through the camera 'away'"),
        ("smolvla", ("front", "front=wrist"), ("front", "wrist"), "names a camera of the policy twice"),
        ("pi0", ("a=front",), ("front", "wrist"), "names no cameras of its own"),
        ("pi0", ("away",), ("front", "wrist"), "looks through the camera 'away'"),
    ],
)  # fmt: skip
def test_cameras_that_do_not_match_are_told(
    folders: dict[str, Path], family: str, cameras: tuple[str, ...], there: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        reading(folders[family], cameras, there)


def test_cameras_that_training_renamed_and_those_that_lerobot_makes_up(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders["smolvla"], tmp_path / "it")
    config = json.loads((folder / "config.json").read_text())
    config["input_features"]["observation.images.empty_camera_0"] = {"type": "VISUAL", "shape": [3, 480, 640]}
    (folder / "config.json").write_text(json.dumps(config))
    pipeline = json.loads((folder / "policy_preprocessor.json").read_text())
    names = {"observation.images.top": "observation.images.front"}
    pipeline["steps"][0] = {"registry_name": "rename_observations_processor", "config": {"rename_map": names}}
    (folder / "policy_preprocessor.json").write_text(json.dumps(pipeline))
    policy = reading(folder, shown=("wrist", "top"))
    assert (policy.config.features, policy.config.cameras) == (("front", "wrist"), ("top", "wrist"))


def test_denoising_steps_are_its_own_unless_chosen(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["smolvla"], tmp_path / "it")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_steps": 7}))
    assert load_policy(folder).config.flow.steps == reading(folder).config.flow.steps == 7
    assert opened(folder).config.flow.steps == 2
    assert load_policy(folders["pi0"]).config.flow.steps == 10
    (folder / "config.json").write_text(json.dumps({**config, "num_steps": 0}))
    with pytest.raises(UserError, match="asks for 0 denoising steps; there must be 1 to 1000"):
        load_policy(folder)


def test_patches_as_both_ways_number_them() -> None:
    assert patch_places(6, 6, "exact").tolist() == [0, 1, 2, 3, 4, 5]
    assert patch_places(6, 6, "shifted").tolist() == [0, 0, 1, 2, 3, 4]
    exact, shifted = (patch_places(32, 32, one) for one in ("exact", "shifted"))
    places = [(32 * at[:, None] + at).flatten() for at in (exact, shifted)]
    assert (places[0] != places[1]).sum() == 1023


def test_where_positions_are_exact(folders: dict[str, Path], tmp_path: Path) -> None:
    """In a SmolVLM in half precision, and in one that LeRobot 0.6 has saved."""
    folder = copy(folders["smolvla"], tmp_path / "it")
    assert load_policy(folder).config.settings["patch_positions"] == "shifted"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pretrained_revision": None}))
    assert load_policy(folder).config.settings["patch_positions"] == "exact"
    (folder / "config.json").write_text(json.dumps({**config, "load_vlm_weights": True}))
    policy = load_policy(folder)
    assert policy.config.settings["patch_positions"] == "exact"
    chosen = opened(folder, patch_positions="shifted")
    assert not torch.equal(acts(policy, observation(1))[:, :K], acts(chosen, observation(1)))
    chosen.save_pretrained(tmp_path / "saved")
    assert load_policy(tmp_path / "saved").config.settings["patch_positions"] == "shifted"
    with pytest.raises(UserError, match="a setting of SmolVLA"):
        opened(folders["pi0"], patch_positions="exact")


def test_demonstrated_actions_are_in_reach(folders: dict[str, Path]) -> None:
    """In radians, whose mean and deviation alone look like those of actions between -1 and 1."""
    policy = opened(folders["pi0"])
    far = torch.tensor([[1.7, -2.4], [-0.3, 0.2]])
    assert not torch.equal(policy.normalizer.limit_action(far), far)
    match_actions(policy, far[[0] + [1] * 7].numpy(), "it", "data")
    assert torch.equal(policy.normalizer.limit_action(far), far)
    assert policy.normalizer.limit_action(2 * far)[0].tolist() == pytest.approx([1.7, -2.4])


def test_dimensions_that_the_robot_lacks_are_denoised_too(folders: dict[str, Path]) -> None:
    """They are no choice, but choices depend on them: a path says how likely it is, whatever led to it."""
    policy, seen = opened(folders["smolvla"]), observation(2)
    decision = policy.act(seen, temperature=1.0, generator=torch.Generator().manual_seed(0))
    idle = decision.trace[..., D:]
    assert (idle[:, -1] - idle[:, 0]).abs().min() > 0
    forged = decision.trace.clone()
    forged[:, 1:, :, D:] = 0  # it is not read: where they begin decides
    log_prob = policy.log_prob(seen, forged, temperature=1.0)
    torch.testing.assert_close(log_prob, decision.log_prob, rtol=1e-4, atol=1e-4)
    forged[:, 0, :, D:] += 1
    assert (policy.log_prob(seen, forged, temperature=1.0) - decision.log_prob).abs().max() > 1e-3


def test_pictures_that_are_not_square_keep_their_shape(folders: dict[str, Path]) -> None:
    """As those who trained the networks fill them up: SmolVLA's in LeRobot, pi0's in transformers' processor."""
    wide = torch.full((1, 3, 10, 2 * SIZE), 255, dtype=torch.uint8)
    smolvla, pi0 = (load_policy(folders[name]).network.pixels(wide)[0, 0] for name in ("smolvla", "pi0"))
    assert smolvla.shape == pi0.shape == (SIZE, SIZE)
    assert smolvla[:, 0].tolist() == [-1] * (SIZE - 5) + [1] * 5
    assert pi0[:, 0].tolist() == [1] * 5 + [0] * (SIZE - 5)
