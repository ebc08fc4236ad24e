"""A SmolVLA that was fine-tuned with PEFT: it decides here as with PEFT's own layers, and goes back whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wmpo.errors import UserError
from wmpo.policies import load_policy
from wmpo.policies.exporting import export

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from test_flow_vla import observation, tiny_smolvla  # noqa: E402

PROJECTIONS = "state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out"
TARGETS = rf"(model\.vlm_with_expert\.lm_expert\..*\.(q|v)_proj|model\.({PROJECTIONS}))"  # LeRobot's for SmolVLA


class Policy(nn.Module):
    """As LeRobot's policy holds its network, so that PEFT gives the same names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network


def chosen(policy: Any) -> Tensor:
    found: Tensor = policy.act(observation(3), temperature=0.0, generator=torch.Generator().manual_seed(0)).chunk
    return found


def tuned(base: Path, folder: Path, **settings: Any) -> Any:
    """What LeRobot saves of a SmolVLA with an adapter, in `folder`; and that policy with PEFT's layers in it."""
    policy: Any = load_policy(base)
    config = peft.LoraConfig(r=4, lora_alpha=8, **{"target_modules": TARGETS, **settings})
    torch.manual_seed(0)
    adapted = peft.get_peft_model(Policy(policy.network), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += 0.2 * torch.randn(parameter.shape)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    for path in base.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            shutil.copy(path, folder)
    told = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "use_peft": True}))
    policy.network = adapted.base_model.model.model.eval()
    return policy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_smolvla(tmp_path_factory.mktemp("published") / "smolvla")


@pytest.mark.parametrize(
    "settings",
    [{}, {"target_modules": r"model\.vlm_with_expert\..*\.(q|v)_proj", "modules_to_save": ["state_proj"]}],
    ids=["as LeRobot", "the SmolVLM too, a layer whole"],
)
def test_it_decides_as_with_layers_of_peft(base: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = chosen(tuned(base, tmp_path / "tuned", **settings))
    ours = load_policy(tmp_path / "tuned")
    torch.testing.assert_close(chosen(ours), theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - chosen(load_policy(base))).abs().max() > 0.02

    export(ours, None, tmp_path / "out")
    out = tmp_path / "out"
    assert torch.equal(chosen(load_policy(out)), chosen(ours))
    assert load_file(out / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    assert json.loads((out / "config.json").read_text())["use_peft"] is False
    assert not [path for path in out.rglob("*") if "adapter" in path.name]


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_base_may_lie_beside_it_and_must_be_its_own(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    theirs = chosen(tuned(base, folder))
    edit(folder, base_model_name_or_path="lerobot/smolvla_base")
    with pytest.raises(UserError, match=r"is an adapter, which changes the weights of lerobot/smolvla_base: put"):
        load_policy(folder)
    shutil.copytree(base, folder / "base")
    torch.testing.assert_close(chosen(load_policy(folder)), theirs, rtol=1e-4, atol=1e-5)
    export(load_policy(folder), None, tmp_path / "out")
    assert not (tmp_path / "out" / "base").exists()

    edit(folder, use_dora=True)
    with pytest.raises(UserError, match="has use_dora, which can't be added here: merge it with PEFT"):
        load_policy(folder)
    edit(folder, use_dora=False)
    weights = folder / "base" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "action_in_proj" not in name}, weights)
    with pytest.raises(UserError, match=r"changes 'model\.action_in_proj\.weight', which .* it is for another base"):
        load_policy(folder)
