"""Files on disk: whole or absent, and wrong ones told in one sentence."""

from __future__ import annotations

import copy
import json
import mmap
import resource
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from docs.generate import metrics_page
from wmpo.config import FitConfig
from wmpo.errors import UserError
from wmpo.families import recipe_from_plain
from wmpo.io.files import atomic_write, read_json, write_json
from wmpo.io.machine import memory_mb
from wmpo.io.plain import from_plain, to_plain
from wmpo.policies import build_policy, load_policy
from wmpo.policies.settings import MiniVLASettings
from wmpo.recipes import RECIPES
from wmpo.training.checkpoint import (
    digest_of,
    load_config,
    load_module,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    save_module,
    save_tensors,
)
from wmpo.training.log import RunLog, clock, read_metrics, read_stages, repair_lines
from wmpo.training.metrics import METRICS
from wmpo.training.prefetch import prefetch
from wmpo.training.resume import Checkpoints
from wmpo.types import EnvSpec


def test_atomic_write_keeps_the_old_file_when_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    atomic_write(path, b"old")
    with pytest.raises(TypeError):
        atomic_write(path, 5)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    atomic_write(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1, 2.5, "ü"]})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": [1, 2.5, "ü"]}
    (tmp_path / "b.json").write_text('{"x": 1,')
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "c.json")
    for content, complaint in (
        (b"[" * 100_000, "beyond all measure"),
        (b'{"a": ' + b"9" * 5000 + b"}", "beyond all measure"),
        (b"\xff\xfe", "no text in UTF-8"),
    ):
        (tmp_path / "d.json").write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            read_json(tmp_path / "d.json")


def test_dataclasses_survive_json() -> None:
    recipe = replace(RECIPES["push"], seed=3, policy=MiniVLASettings(fit=FitConfig(steps=7)))
    assert recipe_from_plain(json.loads(json.dumps(to_plain(recipe))), "here") == recipe
    assert to_plain({"a": np.float32(0.5), "b": torch.tensor([1, 2])}) == {"a": 0.5, "b": [1, 2]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sed": 1}, "'sed'"),
        ({"seed": "1"}, "seed is '1'; it must be a whole number"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"control": 1}, "control is 1; it must be true or false"),
        ({"env": {"renderer": "gl"}}, "renderer is 'gl'; it must be one of 'auto', 'egl', 'rays'"),
        ({"env": {"cameras": "front"}}, "cameras is 'front'; it must be a list"),
        ({"env": {"cameras": [1]}}, r"cameras\[0\] is 1; it must be text"),
        ({"grpo": {"lr": "fast"}}, "here: grpo: lr is 'fast'; it must be a number"),
    ],
)
def test_wrong_fields(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        recipe_from_plain(change, "here")


def test_missing_field() -> None:
    @dataclass
    class Needs:
        x: int

    with pytest.raises(UserError, match="lacks the field 'x'"):
        from_plain(Needs, {}, "here")


class Tied(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.b.weight = self.a.weight


class Other(Tied):
    pass


def test_module_round_trip_and_errors(tmp_path: Path) -> None:
    module = Tied()
    save_module(tmp_path, module, MiniVLASettings(chunk=7))
    assert load_config(tmp_path, MiniVLASettings) == MiniVLASettings(chunk=7)
    loaded = load_module(tmp_path, Tied())
    assert all(torch.equal(x, y) for x, y in zip(module.parameters(), loaded.parameters(), strict=True))

    with pytest.raises(UserError, match="its settings are MiniVLASettings, not FitConfig"):
        load_config(tmp_path, FitConfig)
    with pytest.raises(UserError, match="a Tied, not a Other"):
        load_module(tmp_path, Other())
    with pytest.raises(UserError, match=r"'a.weight' has shape \(4, 4\), but Tied needs \(5, 5\)"):
        load_module(tmp_path, Tied(5))
    weights = tmp_path / "model.safetensors"
    tensors, _ = load_tensors(weights)
    del tensors["b.bias"]
    save_tensors(weights, tensors)
    with pytest.raises(UserError, match=r"lacks 1 weights of Tied, first 'b.bias'"):
        load_module(tmp_path, Tied())
    save_tensors(weights, {**module.state_dict(), "c": torch.zeros(1)})
    with pytest.raises(UserError, match=r"has 1 weights that Tied lacks, first 'c'"):
        load_module(tmp_path, Tied())
    save_tensors(weights, module.state_dict())
    for size in (0, 5, weights.stat().st_size - 3):
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(UserError, match="truncated"):
            load_module(tmp_path, Tied())
        save_tensors(weights, module.state_dict())
    weights.unlink()
    with pytest.raises(UserError, match="does not exist"):
        load_module(tmp_path, Tied())


def test_weights_may_be_read_by_whoever_may_read_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_tensors(tmp_path / "weights", {"a": torch.zeros(2)})
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        save_tensors(tmp_path / "model.safetensors", {**Tied().state_dict(), "b.bias": torch.full((4,), value)})
        with pytest.raises(UserError, match=r"'b.bias' holds NaN or infinite weights"):
            load_module(tmp_path, Tied())


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))  # this much may be written to a file
    try:
        with pytest.raises(UserError, match=r"model.safetensors can't be written .*is kept"):
            save_tensors(path, {"a": torch.zeros(10**6)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, before)
    assert load_tensors(path)[0]["a"].tolist() == [1, 1, 1] and list(tmp_path.iterdir()) == [path]


def test_missing_permission_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(3)})

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UserError, match="can't be read: Permission denied") as caught:
        load_tensors(path)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden": 10**12}, "hidden is 1000000000000; it must be at most 65536"),
        ({"hidden": 20_000}, "far larger network"),
        ({"width": 10**9}, "width is 1000000000; it must be at most 65536"),
        ({"width": 65536, "hidden": 65536}, "a far larger network|no network that can be built"),
        ({"width": 0}, "width is 0; it must be at least 4"),
        ({"width": -3}, "width is -3; it must be at least 4"),
        ({"width": 6}, "no network that can be built"),
        ({"chunk": 10**7}, "chunk is 10000000; it must be at most 1024"),
    ],
)
def test_impossible_sizes_of_a_saved_policy_are_refused(change: dict[str, int], complaint: str, tmp_path: Path) -> None:
    spec = EnvSpec({"front": (16, 16)}, 0, 2, 8, 5)
    build_policy(MiniVLASettings(), spec).save_pretrained(tmp_path)
    described = read_json(tmp_path / "config.json")
    assert described["config"].keys() >= change.keys()
    described["config"] |= change
    write_json(tmp_path / "config.json", described)
    before = memory_mb()
    with pytest.raises(UserError, match=complaint):
        load_policy(tmp_path)
    assert memory_mb() - before < 1000


def test_digests_tell_weights_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = Tied()
    same = copy.deepcopy(one)
    assert digest_of(one) == digest_of(same) and len(digest_of(one)) == 16
    same.b.bias.data[0] += 1e-6
    assert digest_of(one) != digest_of(same) != digest_of(nn.Linear(4, 4))
    assert digest_of(nn.ParameterList([nn.Parameter(torch.ones(2, 3))])) != digest_of(
        nn.ParameterList([nn.Parameter(torch.ones(3, 2))])
    )
    digest_of(nn.Linear(2, 2, dtype=torch.bfloat16))


def test_optimizer_round_trip(tmp_path: Path) -> None:
    def pair() -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(1)
        module = nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)

    def step(module: nn.Linear, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    module, optimizer = pair()
    for _ in range(3):
        step(module, optimizer)
    save_tensors(tmp_path / "state", optimizer_tensors(optimizer))
    other, other_optimizer = pair()
    other.load_state_dict(module.state_dict())
    load_optimizer(other_optimizer, load_tensors(tmp_path / "state")[0], "state")
    step(module, optimizer)
    step(other, other_optimizer)
    assert torch.equal(module.weight, other.weight)
    with pytest.raises(UserError, match="another network"):
        load_optimizer(torch.optim.AdamW(nn.Linear(4, 2).parameters()), optimizer_tensors(optimizer), "state")


def test_log_survives_a_cut_line(tmp_path: Path) -> None:
    with RunLog(tmp_path, quiet=True) as log:
        log.scalars(1, {"policy/loss": 2.0})
        log.scalars(2, {"policy/loss": 1.5, "policy/lr": 0.1})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "policy/lo')
    assert read_metrics(tmp_path)["policy/loss"] == [(1, 2.0), (2, 1.5)]
    with RunLog(tmp_path, quiet=True) as log:
        log.scalars(2, {"policy/loss": 1.25})  # a resumed run takes this step again
        log.scalars(3, {"policy/loss": 1.0})
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert read_metrics(tmp_path) == {"policy/loss": [(1, 2.0), (2, 1.25), (3, 1.0)], "policy/lr": [(2, 0.1)]}
    assert list((tmp_path / "tensorboard").iterdir())


def test_odd_lines_and_odd_stages_are_skipped(tmp_path: Path) -> None:
    odd = [b"null", b"[]", b"\xff\xfe", b'{"a": 1}', b'{"step": "1", "a": 1}', b'{"step": 1, "a": "x", "b": null}',
           b'{"step": true, "a": 1}', b"[" * 100_000, b'{"step": 1, "a": ' + b"9" * 5000 + b"}"]  # fmt: skip
    good = [b'{"step": 1, "time": 0, "loss": 2.0}', b'{"step": 2, "loss": 1.0}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], *odd, good[1]]) + b"\n")
    assert read_metrics(tmp_path) == {"loss": [(1, 2.0), (2, 1.0)]}
    with RunLog(tmp_path, quiet=True) as log:
        for text in (b"null", b"\xff\xfe", b"[1]", b'{"collect": null, "imitate": {"seconds": "x"}}', b"[" * 100_000):
            (tmp_path / "stages.json").write_bytes(text)
            assert read_stages(tmp_path).get("imitate", {}) == {}
            with log.stage("collect"):
                pass
            assert read_stages(tmp_path)["collect"]["sessions"] == 1  # healed


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunLog(folder, quiet=True) as log, pytest.raises(UserError, match="has been removed"), log.stage("collect"):
        shutil.rmtree(folder)
        log.scalars(1, {"a": 1.0})
    with pytest.raises(UserError, match="has been removed"):
        Checkpoints(folder / "policy", {}).save(1, {})
    assert not folder.exists()


def test_repair_lines_of_one_cut_line(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"st')
    repair_lines(tmp_path / "m")
    assert (tmp_path / "m").read_text() == ""


def test_stage_adds_up_over_resumes(tmp_path: Path) -> None:
    log = RunLog(tmp_path, quiet=True)
    with log.stage("collect"):
        time.sleep(0.05)
    first = read_stages(tmp_path)["collect"]
    with pytest.raises(RuntimeError), log.stage("collect"):
        raise RuntimeError
    second = read_stages(tmp_path)["collect"]
    assert 0.05 <= first["seconds"] <= second["seconds"] < 10
    assert (first["sessions"], second["sessions"]) == (1, 2)
    assert second["peak_memory_mb"] >= first["peak_memory_mb"] > 50  # torch alone takes more


def test_memory_grows_with_what_is_held() -> None:
    before = memory_mb()
    with mmap.mmap(-1, 64 * 1024**2) as held:  # new pages for certain: an allocator may have some left from earlier
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert 50 < memory_mb() - before < 80


def test_progress_in_a_file_says_a_line_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("wmpo.training.log.PLAIN_SECONDS", 0.0)
    log = RunLog(tmp_path)
    with log.progress("reward", 10) as bar:
        bar.skip(4)
        bar.update(3, "loss 1.5")
    assert capsys.readouterr().out.startswith("reward: 7/10, ")


@pytest.mark.parametrize("terminal", [False, True])
def test_markup_in_a_path_is_text(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wmpo.training.log.PLAIN_SECONDS", 0.0)
    log = RunLog(tmp_path)
    log.console = Console(force_terminal=terminal, width=100)
    log.info("in x[/b]y")
    with log.progress("a[/b]", 10) as bar:
        bar.update(3, "loss [/c]")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("x[/b]y", "a[/b]", "[/c]"))


def test_a_closed_standard_output_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmpo.training.log.PLAIN_SECONDS", 0.0)
    monkeypatch.setattr("sys.stdout", None)
    log = RunLog(tmp_path)
    log.info("hello")
    with log.progress("a", 10) as bar:
        bar.update()


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.4, 185, 7620)] == ["0 s", "59 s", "3 min 05 s", "2 h 07 min"]


def test_metrics_are_documented() -> None:
    assert all(f"`{name}`" in metrics_page() and text.endswith(".") for name, text in METRICS.items())


def test_prefetch() -> None:
    assert list(prefetch(lambda step: step**2, range(3, 7))) == [9, 16, 25, 36]

    def fails(step: int) -> int:
        if step == 2:
            raise KeyError("two")
        return step

    seen = []
    with pytest.raises(KeyError, match="two"):
        for value in prefetch(fails, range(5)):
            seen.append(value)
    assert seen == [0, 1]
    calls = []
    for _ in prefetch(lambda step: calls.append(step), range(1000)):
        break
    time.sleep(0.05)
    assert len(calls) <= 5  # leaving early stops the thread
