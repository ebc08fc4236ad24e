"""`wmpo serve`: what it needs, and what it says where that is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.coin import Coin
from wmpo.cli import main
from wmpo.errors import UserError
from wmpo.policies import build_policy
from wmpo.policies.settings import MiniVLASettings
from wmpo.serving.actor import Actor, free_port
from wmpo.types import Decision, EnvSpec, Observation

Captured = pytest.CaptureFixture[str]
SPEC = EnvSpec({"front": (24, 24)}, state_dim=2, action_dim=3, horizon=50, fps=10)
PICTURE = np.full((24, 24, 3), (10, 20, 30), np.uint8)
SOME = np.zeros(2, np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("serve") / "policy"
    build_policy(MiniVLASettings(chunk=4, width=8, hidden=16), SPEC).save_pretrained(folder)
    return folder


def told(arguments: list[object], capsys: Captured) -> str:
    assert main(["serve", *map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["vla-eval", "lerobot"])
def test_what_is_wrong_is_one_sentence(
    protocol: str, saved: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vla_eval", "grpc"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__spec__=SimpleNamespace()))  # as if it were installed
    asked = ["--protocol", protocol]
    assert "holds no policy, since it has no config.json" in told([tmp_path, *asked], capsys)
    assert "--port is 70000" in told([saved, *asked, "--port", 70000], capsys)
    assert "--temperature is -1" in told([saved, *asked, "--temperature", -1], capsys)
    assert "did you mean front?" in told([saved, *asked, "--cameras", "frnt=top"], capsys)
    assert "twice" in told([saved, *asked, "--cameras", "front=a", "front=b"], capsys)
    assert "--protocol" in told([saved], capsys)
    monkeypatch.setitem(sys.modules, "vla_eval", None)
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert f"pip install 'wmpo[serve-{protocol}]'" in told([saved, *asked], capsys)


def test_a_convention_is_of_vla_eval_only(saved: Path, capsys: Captured) -> None:
    pytest.importorskip("grpc")
    assert "of vla-eval's" in told([saved, "--protocol", "lerobot", "--convention", "libero"], capsys)


@pytest.mark.parametrize(("protocol", "package"), [("vla-eval", "vla_eval"), ("lerobot", "grpc")])
def test_a_port_in_use_is_told(protocol: str, package: str, saved: Path, capsys: Captured) -> None:
    pytest.importorskip(package)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = told([saved, "--protocol", protocol, "--port", port], capsys)
        assert f"Nothing can be served at 127.0.0.1:{port}" in found
        assert "--port" in found


@pytest.mark.parametrize(("protocol", "package"), [("vla-eval", "vla_eval"), ("lerobot", "grpc")])
def test_it_serves_until_it_is_stopped(protocol: str, package: str, saved: Path) -> None:
    pytest.importorskip(package)
    command = [sys.executable, "-m", "wmpo.cli", "serve", str(saved), "--protocol", protocol, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert "127.0.0.1:" in line, process.stderr.read()
        assert "cameras front; 2 state numbers; chunks of 4 actions" in line
        port = int(line.split("127.0.0.1:")[1].split()[0])
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        process.terminate()
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


def test_no_port_is_given_twice_and_a_host_must_exist() -> None:
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        free_port("nowhere.invalid", 8000)


class Sized(Coin):
    """A policy that insists on the size of its pictures, and takes any state."""

    config: Any = SimpleNamespace(cameras={"front": (2, 2)})

    def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
        image = observation.images["front"].float().mean((2, 3))
        return Decision(torch.cat([image, observation.state], 1)[:, None], image, image)


def test_pictures_get_the_size_that_a_policy_insists_on() -> None:
    actor = Actor(Sized(), Path("here"), ["front=top"], instruction="flip")
    seen = actor.observation({"top": PICTURE, "other": PICTURE}, SOME, "")
    assert seen.images["front"].shape == (1, 3, 2, 2)
    assert seen.instruction == ("flip",)
    found = actor.decide(seen, torch.Generator())
    assert np.allclose(found[0, :3], (10, 20, 30))
    assert found.shape == (1, 5)


def test_a_policy_that_names_no_cameras_needs_them_named() -> None:
    with pytest.raises(UserError, match="name the client's with --cameras"):
        Actor(Coin(), Path("here"))
    seen = Actor(Coin(), Path("here"), ["b", "front=a"]).observation({"a": PICTURE, "b": PICTURE}, SOME, "flip")
    assert list(seen.images) == ["b", "front"]


def test_no_client_gets_nan() -> None:
    class Broken(Sized):
        def act(self, observation: Observation, *, temperature: float, generator: torch.Generator) -> Decision:
            found = super().act(observation, temperature=temperature, generator=generator)
            return Decision(found.chunk * torch.nan, found.trace, found.log_prob)

    actor = Actor(Broken(), Path("here"))
    with pytest.raises(UserError, match="NaN"):
        actor.decide(actor.observation({"front": PICTURE}, SOME, "flip"), torch.Generator())


def test_a_policy_without_eyes_for_the_state_gets_none() -> None:
    policy = Sized()
    policy.config = SimpleNamespace(cameras=("front",), image_size=(4, 6), state_dim=None)
    seen = Actor(policy, Path("here")).observation({"front": PICTURE}, SOME, "flip")
    assert seen.state.shape == (1, 0)
    assert seen.images["front"].shape == (1, 3, 4, 6)
