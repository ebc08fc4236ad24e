"""Policies that go back to where they were published: what was learned arrives, and all else stays as it was."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wmpo.cli import main
from wmpo.errors import UserError
from wmpo.policies import load_policy
from wmpo.policies.exporting import export
from wmpo.policies.minivla import MiniVLA
from wmpo.policies.settings import MiniVLASettings

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from test_flow_vla import MAKERS, SPEC, copy, observation, opened  # noqa: E402
from test_openvla_oft import observation as oft_observation  # noqa: E402
from test_openvla_oft import opened as oft_opened  # noqa: E402
from test_openvla_oft import publish  # noqa: E402

FLOW = pytest.mark.parametrize("family", MAKERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: make(tmp_path_factory.mktemp("published") / name) for name, make in MAKERS.items()}
    for folder in made.values():
        (folder / "README.md").write_text("a licence")
        (folder / ".cache").mkdir()
    weights = made["smolvla"] / "model.safetensors"
    tensors = load_file(weights)
    halves = {name: tensor.bfloat16() if ".vlm." in name else tensor for name, tensor in tensors.items()}
    save_file({**halves, "model.vlm_with_expert.vlm.lm_head.weight": torch.ones(64, 32)}, weights)
    return made


def practised(policy: nn.Module) -> None:
    """A step of learning."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in sorted(folder.glob("model*.safetensors")) for name, t in load_file(path).items()}


def chosen(policy: Any, seen: Any) -> Tensor:
    found: Tensor = policy.act(seen, temperature=0.0, generator=torch.Generator().manual_seed(0)).chunk
    return found


@FLOW
def test_what_was_learned_goes_back_and_nothing_else(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    published, policy = folders[family], opened(folders[family], "learned")
    practised(policy)
    policy.save_pretrained(tmp_path / "better")
    assert main(["export", str(tmp_path / "better"), str(tmp_path / "out")]) == 0
    out = tmp_path / "out"
    again = load_policy(out)
    assert torch.equal(chosen(again, observation(3)), chosen(policy, observation(3)))
    assert not torch.equal(
        chosen(load_policy(published), observation(3))[:, : policy.chunk], chosen(policy, observation(3))
    )

    before, after = tensors_in(published), tensors_in(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if ".vlm." in name or ".paligemma." in name or "lm_head" in name}
    assert changed and not changed & frozen
    assert all(before[name].dtype == after[name].dtype for name in frozen)
    told = json.loads((out / "config.json").read_text())
    steps = told["num_steps" if family == "smolvla" else "num_inference_steps"]
    assert (told["chunk_size"], steps) == (policy.chunk, 2)
    assert told.keys() >= json.loads((published / "config.json").read_text()).keys()
    assert (out / "README.md").read_text() == "a licence" and not (out / ".cache").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@FLOW
def test_what_was_not_touched_stays_to_the_bit(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    export(load_policy(folders[family]), None, tmp_path / "out")
    before, after = tensors_in(folders[family]), tensors_in(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def test_transformers_opens_the_pi0_and_decides_alike(folders: dict[str, Path], tmp_path: Path) -> None:
    policy, seen = opened(folders["pi0"]), observation(2)
    practised(policy)
    export(policy, None, tmp_path / "out")
    model, found = transformers.PI0ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    decision = policy.act(seen, temperature=0.0, generator=torch.Generator().manual_seed(0))
    noise = torch.randn((2, 3, policy.chunk, 6), generator=torch.Generator().manual_seed(0))[:, 0]
    tokens, mask = policy._tokens(seen.instruction)
    state = torch.cat([policy.normalizer.normalize_state(seen.state), torch.zeros(2, 3)], 1)
    answer = model.sample_actions(
        state=state, noise=noise, input_ids=torch.cat([torch.full((2, 8), 63), tokens], 1),
        attention_mask=torch.cat([torch.ones(2, 8, dtype=torch.long), mask.long()], 1),
        pixel_values=torch.stack([policy.network.pixels(image) for image in seen.images.values()], 1),
        pixel_attention_mask=torch.ones(2, 2, dtype=torch.bool),
    )  # fmt: skip
    torch.testing.assert_close(decision.trace[:, -1], answer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_openvla_oft_goes_back(rank: int, tmp_path: Path) -> None:
    """With all weights trained, the position of the class token among them, or with low-rank changes."""
    if rank:
        pytest.importorskip("peft")
    published = publish(tmp_path / "published", "proprio_projector")
    policy = oft_opened(published, lora_rank=rank)
    practised(policy)
    policy.save_pretrained(tmp_path / "better")
    assert main(["export", str(tmp_path / "better"), str(tmp_path / "out")]) == 0
    again = oft_opened(tmp_path / "out")
    with torch.no_grad():
        logits = (again.logits(oft_observation()), policy.logits(oft_observation()))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    assert again.config.lora_rank == 0
    before, after = tensors_in(published), tensors_in(tmp_path / "out")
    assert {name: t.shape for name, t in before.items()} == {name: t.shape for name, t in after.items()}
    towers = [name for name in before if name.startswith("vision_backbone.")]
    unused = [name for name in towers if ".norm." in name or "attn_pool" in name or "blocks.2." in name]
    assert unused and all(torch.equal(before[name], after[name]) for name in unused)
    own = torch.load(tmp_path / "out" / "proprio_projector--wmpo_checkpoint.pt", weights_only=True)
    assert own.keys() == load_file(tmp_path / "out" / "proprio_projector.safetensors").keys()
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())


def test_an_untouched_openvla_oft_is_what_it_was(tmp_path: Path) -> None:
    published = publish(tmp_path / "published")
    export(oft_opened(published), None, tmp_path / "out")
    before, after = tensors_in(published), tensors_in(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def other_statistics(folder: Path) -> None:
    for file in folder.glob("policy_*.safetensors"):
        save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    if (folder / "processor_config.json").exists():
        numbers = json.loads((folder / "processor_config.json").read_text())
        numbers["actions_std"] = [2 * number for number in numbers["actions_std"]]
        (folder / "processor_config.json").write_text(json.dumps(numbers))


def edited(name_ends: str, edit: Callable[[Tensor], Tensor | None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = next(
            name
            for name in tensors
            if name.endswith(name_ends) and (".vlm" in name or ".paligemma" in name or "action_out" in name)
        )
        tensor = edit(tensors.pop(name))
        if tensor is not None:
            tensors[name] = tensor
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


@FLOW
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_statistics, "has other statistics than the policy"),
        (edited("embed_tokens.weight", lambda t: t + 1), "which was never trained: the policy began elsewhere"),
        (edited("action_out_proj.weight", lambda t: t[1:]), "in another shape: the policy began elsewhere"),
        (edited("action_out_proj.weight", lambda t: None), "lacks 1 weights of the policy"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no"),
        (lambda folder: (folder / "config.json").unlink(), r"is not in .* any more: give it by --published"),
    ],
    ids=["statistics", "frozen", "shape", "missing", "foreign", "gone"],
)  # fmt: skip
def test_another_folder_than_the_one_it_began_from_is_refused(
    folders: dict[str, Path], family: str, spoil: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    policy, other = load_policy(folders[family]), copy(folders[family], tmp_path / "other")
    spoil(other)
    with pytest.raises(UserError, match=said):
        export(policy, other, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_what_cannot_be_exported_is_told(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = MiniVLA.build(MiniVLASettings(width=8, hidden=16), SPEC)
    own.save_pretrained(tmp_path / "own")
    full, inside = tmp_path / "full", folders["smolvla"] / "out"
    full.mkdir()
    (full / "mine").write_text("")
    (tmp_path / "link").symlink_to("gone")
    for arguments, said in (
        ((tmp_path / "own", tmp_path / "out"), "this policy is wmpo's own"),
        ((folders["smolvla"], full), "is there already"),
        ((folders["smolvla"], tmp_path / "link"), "is there already"),
        ((folders["smolvla"], inside), "which is only read"),
        ((tmp_path / "nothing", tmp_path / "out"), "holds no policy"),
    ):
        assert main(["export", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not inside.exists() and [*full.iterdir()] == [full / "mine"]


def test_a_full_disk_is_told_and_leaves_nothing(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
    try:
        assert main(["export", str(folders["smolvla"]), str(tmp_path / "out")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "model.safetensors can't be written" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_a_pickle_stays_behind(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["smolvla"], tmp_path / "it")
    (folder / "optimizer.pt").write_bytes(b"anything")
    export(load_policy(folder), None, tmp_path / "out")
    assert not (tmp_path / "out" / "optimizer.pt").exists()


def test_patches_numbered_in_another_way_than_by_lerobot_are_told(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LeRobot 0.4 shifts them in float32; what 0.6 has saved, 0.4 can't open."""
    folder = copy(folders["smolvla"], tmp_path / "it")
    config = json.loads((folder / "config.json").read_text())
    for more, positions, told in (
        ({}, "shifted", "in LeRobot 0.5 and later:"),
        ({}, "exact", "in LeRobot 0.4:"),
        ({"load_vlm_weights": True}, "shifted", "in LeRobot 0.4, 0.5 and later:"),
        ({"load_vlm_weights": True}, "exact", ""),
        ({"pretrained_revision": None}, "exact", ""),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **more}))
        name = f"{positions}-{len(list(tmp_path.iterdir()))}"
        opened(folder, patch_positions=positions).save_pretrained(tmp_path / name)
        assert main(["export", str(tmp_path / name), str(tmp_path / f"{name}-out")]) == 0
        said = capsys.readouterr().out
        assert told in said and ("expect other actions there" in said) is bool(told)
