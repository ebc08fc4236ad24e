"""Processes that share weights and optimiser state: they learn what one learns, and go on in any number."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch

from sharing import learn
from test_ranks import ROOT, assert_equal_weights, torchrun
from wmpo.errors import UserError
from wmpo.training import resume
from wmpo.training.checkpoint import load_rows, save_tensors
from wmpo.training.log import read_metrics
from wmpo.training.resume import Checkpoints

SHARING = str(ROOT / "tests" / "sharing.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process learns."""
    folder = tmp_path_factory.mktemp("alone")
    learn(folder)
    return folder


def test_two_learn_what_one_does_and_go_on_where_it_was(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="enough"):
        learn(tmp_path, "stop")  # the first network, which two then go on with; the others are theirs
    assert [path.name for path in tmp_path.glob("transformer/*")] == ["checkpoint.safetensors"]
    done = torchrun(2, SHARING, str(tmp_path), "as usual")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(alone, tmp_path, 1e-5)
    mine, theirs = read_metrics(alone), read_metrics(tmp_path)
    whole = ("transformer/loss", "transformer/grad_norm", "unet/loss", "unet/error", "unet/grad_norm")
    for name in (*whole, "policy/loss", "policy/grad_norm"):
        assert dict(theirs[name]) == pytest.approx(dict(mine[name]), rel=1e-4, abs=1e-5), name


def test_three_go_on_where_two_were_killed_and_so_does_one(alone: Path, tmp_path: Path) -> None:
    killed = torchrun(2, SHARING, str(tmp_path / "three"), "kill")
    assert killed.returncode != 0 and "exitcode: -9" in re.sub(r"exitcode\s*:", "exitcode:", killed.stderr)
    assert "wmpo: Another process of this run has ended" in killed.stderr or "wmpo: stopped" in killed.stderr
    files = {path.name: path for path in (tmp_path / "three" / "transformer").iterdir()}
    shares = [path for name, path in files.items() if "-of-2" in name]
    assert len(shares) == 2 and "checkpoint.safetensors" in files
    sizes = [path.stat().st_size for path in shares]
    assert max(sizes) < 1.5 * min(sizes) and files["checkpoint.safetensors"].stat().st_size < 0.5 * min(sizes)
    shutil.copytree(tmp_path / "three", tmp_path / "one")
    learn(tmp_path / "one")
    assert_equal_weights(alone, tmp_path / "one", 1e-5)
    done = torchrun(3, SHARING, str(tmp_path / "three"), "as usual")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(alone, tmp_path / "three", 1e-5)
    assert [path.name for path in (tmp_path / "three" / "transformer").iterdir()] == ["model.safetensors"]


def test_rows_are_read_wherever_they_lie(tmp_path: Path) -> None:
    whole = {"matrix": torch.arange(14.0).view(7, 2), "short": torch.arange(2.0)}
    paths = [tmp_path / f"{place}.safetensors" for place in range(3)]
    for path, some, few in zip(paths, ((0, 3), (3, 6), (6, 7)), ((0, 1), (1, 2), (2, 2)), strict=True):
        save_tensors(path, {"matrix": whole["matrix"][slice(*some)], "short": whole["short"][slice(*few)]})
    for begin in range(8):
        for end in range(begin, 8):
            found = load_rows(paths, {"matrix": range(begin, end)})
            assert torch.equal(found["matrix"], whole["matrix"][begin:end])
            assert torch.equal(found["short"], whole["short"])


@dataclass
class Shared:
    """Looks like a tensor that ranks share."""

    rows: torch.Tensor

    def to_local(self) -> torch.Tensor:
        return self.rows


def test_shares_count_once_all_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever file a run is killed."""
    files = Checkpoints(tmp_path / "fit", {"lr": 1})

    def save(steps: int) -> None:
        files.save(steps, cast("dict[str, torch.Tensor]", {"weight": Shared(torch.full((2,), float(steps)))}))

    save(4)
    for killed_at in ("checkpoint-6.1-of-1.safetensors", "checkpoint.safetensors"):

        def write(path: Path, *rest: object, killed_at: str = killed_at) -> None:
            if path.name == killed_at:
                raise KeyboardInterrupt
            save_tensors(path, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(resume, "save_tensors", write)
        with pytest.raises(KeyboardInterrupt):
            save(6)
        tensors, steps = files.load()
        assert (steps, tensors["weight"].tolist()) == (4, [4.0, 4.0])
    monkeypatch.undo()
    save(7)
    assert files.load()[0]["weight"].tolist() == [7.0, 7.0]
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "checkpoint-7.1-of-1.safetensors",
        "checkpoint.safetensors",
    ]
    share = files.folder / "checkpoint-7.1-of-1.safetensors"
    share.write_bytes(share.read_bytes()[:-1])
    for what in ("is truncated or no safetensors file", "does not exist"):  # once it has been deleted
        with pytest.raises(UserError, match=rf"{share.name} {what}.*or delete {files.checkpoint}, and .* anew\.$"):
            files.load()
        share.unlink(missing_ok=True)
    files.checkpoint.unlink()  # as it was told
    assert files.load() == ({}, 0)
    save(8)
    files.save(9, {"weight": torch.zeros(2)})
    assert [path.name for path in files.folder.iterdir()] == ["checkpoint.safetensors"]
