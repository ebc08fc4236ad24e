"""The page that shows how to add a policy family: its example is run as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from wmpo.cli import main
from wmpo.config import PolicyConfig
from wmpo.contracts import check_policy
from wmpo.data.clips import ImitationBatch
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.errors import UserError
from wmpo.policies import build_policy, load_policy

PAGE = Path(__file__).parents[1] / "docs" / "own_policy.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's first file and its entry point, as pip would install them."""
    code, entry = (re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)[0] for kind in ("python", "toml"))
    (tmp_path / "linear_policy.py").write_text(code)
    facts = tmp_path / "linear_policy-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: linear-policy\nVersion: 1\n")
    named = entry.replace('[project.entry-points."wmpo.policies"]', "[wmpo.policies]").replace('"', "")
    (facts / "entry_points.txt").write_text(named)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "linear_policy", raising=False)


@pytest.mark.usefixtures("installed")
def test_the_example_keeps_the_contract_learns_and_is_opened_again(tmp_path: Path) -> None:
    env = make_env(TabletopSettings(image_size=16, workers=0, renderer="rays"))
    seen = env.reset([0, 1])
    torch.manual_seed(0)
    policy: Any = build_policy(PolicyConfig(family="linear", chunk=3), env.spec)
    assert check_policy(policy, seen, env.spec.action_dim) == []
    action = torch.full((2, 3, env.spec.action_dim), 0.5)
    batch = ImitationBatch(seen, action, torch.ones(2, 3, dtype=torch.bool))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        policy(batch)[0].backward()
        optimizer.step()
    greedy = policy.act(seen, temperature=0.0, generator=torch.Generator()).chunk
    assert torch.equal(greedy, action)
    policy.save_pretrained(tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    assert torch.equal(again.logits(seen), policy.logits(seen))
    env.close()


def test_a_checkpoint_can_name_no_code(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"family": "os:system"}')
    with pytest.raises(UserError, match="'os:system' is a class of yours, which no file may name"):
        load_policy(tmp_path)
    with pytest.raises(UserError, match="can't be built from scratch"):
        build_policy(PolicyConfig(family="pi0"), None)  # type: ignore[arg-type]


def test_a_file_where_a_folder_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    assert main(["run", "smoke", "--out", str(file)]) == 2
    assert str(file) in capsys.readouterr().err and file.read_text() == "mine"
