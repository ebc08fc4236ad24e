"""The pages: what their server refuses, and what they do in a real browser."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from tests import browser
from tests.coin import Hand
from tests.recordings import Recording, record
from tests.test_imagination import TrueDynamics
from wmpo.cli import main
from wmpo.config import RewardConfig
from wmpo.data.store import EpisodeStore
from wmpo.envs import make_env
from wmpo.envs.tabletop.settings import TabletopSettings
from wmpo.errors import UserError
from wmpo.rewards import build_reward_model
from wmpo.rollout import rollout
from wmpo.web.play import Play
from wmpo.web.server import Call, make_server
from wmpo.web.view import View

needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "there is one")
CPU = torch.device("cpu")


@contextmanager
def served(page: str, calls: Mapping[str, Call], host: str = "127.0.0.1") -> Iterator[str]:
    server, address = make_server(page, calls, host, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def surfing(address: str) -> Iterator[browser.Browser]:
    with closing(browser.Browser(address)) as page:
        yield page


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Play, View]]:
    """Of a dream that is true, with a judge who has learned nothing."""
    config = TabletopSettings(image_size=32, workers=0, renderer="rays")
    with closing(make_env(config)) as real, closing(make_env(config)) as inside:
        store = EpisodeStore.create(tmp_path_factory.mktemp("web") / "store", real.spec)
        generator = torch.Generator().manual_seed(0)
        store.append(rollout(real, Hand(), [3, 4], temperature=1.0, generator=generator, record="hand").episodes)
        torch.manual_seed(0)
        judge = build_reward_model(RewardConfig(), real.spec)
        world: Any = TrueDynamics(inside, [3, 4])
        world.chunk = 4
        hand: Any = Hand()
        yield Play(world, judge, hand, store, real, CPU, 0.0), View(store, (world, judge), CPU)


def asked(address: str, path: str, body: bytes | None = b"{}", **headers: str) -> tuple[int, Any]:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("GET" if body is None else "POST", path, body, given)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if answer.headers["Content-Type"] == "application/json" else text


def test_server_answers_this_machine_or_a_token_only() -> None:
    calls: dict[str, Call] = {"double": lambda asked: 2 * asked["number"]}
    with served("play.html", calls) as address:
        assert asked(address, "/double", b'{"number": 4}') == (200, 8)
        assert asked(address, "/", None)[0] == 200
        assert asked(address, "/../server.py", None)[0] == 404
        assert asked(address, "/", None, Host="evil.example:80")[0] == 403  # DNS that points here
        assert asked(address, "/double", b'{"number": 4}', Content_Type="text/plain")[0] == 403  # a form elsewhere
        for body in (b"", b"[]", b"{", b'{"number": null}', b"{}", b"\xff", b"[" * 60000):
            status, found = asked(address, "/double", body)
            assert status == 400
            assert found["error"]
        assert asked(address, "/nothing")[0] == 400
    with served("play.html", calls, "0.0.0.0") as address:
        assert asked(address, "/double", b'{"number": 4}')[0] == 403
        assert asked(address, "/", None)[0] == 403
        token = address.partition("token=")[2]
        assert asked(address, f"/?token={token}", None)[0] == 200
        assert asked(address, "/double", b'{"number": 4}', X_Token=token) == (200, 8)
        assert asked(address, "/double", b'{"number": 4}', X_Token=token[:-1])[0] == 403


def test_nothing_that_comes_over_the_wire_is_told_on_the_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is no HTTP, nor who hangs up in the middle of it; who says nothing for long is let go."""
    monkeypatch.setattr("wmpo.web.server.PATIENCE", 0.5)
    with served("view.html", {"double": lambda asked: 2 * asked["number"]}) as address:
        place = urlsplit(address)

        def sent(content: str, hang_up: bool = False) -> bytes:
            with socket.create_connection((place.hostname, place.port), timeout=10) as line:
                line.sendall(content.encode())
                if not hang_up:
                    return line.makefile("rb").read()
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                time.sleep(0.2)  # it is being read; a reset follows
            return b""

        post, kind = "POST /double HTTP/1.1\r\nConnection: close\r\n", "Content-Type: application/json\r\n"
        for host in ("[", "]", "[::1", "[x]"):
            assert sent(f"GET / HTTP/1.1\r\nConnection: close\r\nHost: {host}\r\n\r\n").startswith(b"HTTP/1.1 403")
        for length in ("9" * 5000, "9" * 8, "-1", "1e1", ""):
            told = sent(f"{post}Host: localhost\r\n{kind}Content-Length: {length}\r\n\r\n")
            assert told.startswith(b"HTTP/1.1 400"), length
        late = f"{post}Host: localhost\r\n{kind}Content-Length: 100\r\n\r\n{{"
        for begun in ("", "GET / HT", late):
            assert sent(begun) == b""
            sent(begun, hang_up=True)
        assert asked(address, "/double", b'{"number": 4}') == (200, 8)
    assert capfd.readouterr() == ("", "")


def test_the_same_actions_for_real_and_in_the_dream(played: tuple[Play, View]) -> None:
    play, _ = played
    with pytest.raises(UserError, match="episode"):
        Play(play.world_model, play.reward_model, play.policy, EpisodeStore.create(play.store.root / "empty",
             play.store.spec), None, CPU, 0.0)  # fmt: skip
    first = play.reset({"episode": 0})
    assert first["dream"] == first["real"]
    for actions in ([[1, 0, 0, -1]], [[9, 0, 0, 0], [0, 0, 0, 0]], None):  # limited; the last one is repeated
        found = play.step({} if actions is None else {"actions": actions})
        assert found["dream"] == found["real"]
        assert found["states"]["dream"] == found["states"]["real"]
        assert len(found["scores"]) == 4
    assert np.abs(found["actions"]).max() <= 1
    for wrong in ([], [[1, 0]], [[float("nan")] * 4], "up", [["x"] * 4], 3):
        with pytest.raises((UserError, ValueError, TypeError)):
            play.step({"actions": wrong})


def test_rows_are_scored_one_by_one(played: tuple[Play, View]) -> None:
    _, view = played
    view.best.clear()
    counts = [sum("real" in row for row in view.episodes(asked)["rows"]) for asked in ({}, *[{"score": True}] * 3)]
    assert counts == [0, 1, 2, 2]
    found = view.episode({"index": 0})
    assert found["real"]["strip"] == found["dream"]["strip"]
    np.testing.assert_allclose(np.array(found["scores"]["real"][1:], float), found["scores"]["dream"][1:], atol=1e-5)
    with pytest.raises(UserError, match="no episode 7"):
        view.episode({"index": 7})


@pytest.fixture
def unlabelled(tmp_path: Path) -> View:
    """Three imported episodes of 4 frames, of which nobody has said whether they succeed."""
    assert main(["data", "import", str(record(tmp_path / "theirs", Recording(codec="", lengths=(4, 4, 4)))),
                 str(tmp_path / "ours")]) == 0  # fmt: skip
    return View(EpisodeStore.open(tmp_path / "ours"), None, CPU)


def labels_of(view: View) -> list[bool | None]:
    rows: Any = view.episodes({})
    return [row["success"] for row in rows["rows"]]


def test_labels_by_hand(unlabelled: View, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view, root = unlabelled, unlabelled.store.root
    assert labels_of(view) == [None, None, None]
    view.label({"index": 0, "success": True, "frame": 2})
    assert main(["data", "label", str(root), "--success", "none"]) == 0  # by another process, meanwhile
    view.label({"index": 1, "success": True, "frame": 2})
    view.label({"index": 2, "success": False, "frame": 0})
    assert labels_of(view) == labels_of(View(EpisodeStore.open(root), None, CPU)) == [False, True, False]
    assert EpisodeStore.open(root).episode(1).success.tolist() == [False, False, True, True]
    for wrong in ({"index": 3}, {"index": -1}, {"index": 0.5}, {"index": True}, {"frame": -1}, {"frame": None},
                  {"success": "no"}, {"success": None}):  # fmt: skip
        with pytest.raises(UserError):
            view.label({"index": 0, "success": True, "frame": 0} | wrong)
    assert labels_of(view) == [False, True, False]
    (tmp_path / "recipe.json").write_text("{}")  # now it is the store of a run
    assert main(["data", "label", str(root), "--success", "all"]) == 2
    assert "belongs to a run" in capsys.readouterr().err
    with pytest.raises(UserError, match="belong to a run"):
        replace(view, labels=False).label({"index": 0, "success": True, "frame": 0})
    assert labels_of(View(EpisodeStore.open(root), None, CPU)) == [False, True, False]


@needs_browser
def test_keys_label_in_a_browser(unlabelled: View) -> None:
    calls: dict[str, Call] = {
        "episodes": unlabelled.episodes, "episode": unlabelled.episode, "label": unlabelled.label
    }  # fmt: skip
    with served("view.html", calls) as address, surfing(address) as page:
        page.until("return state.shown && state.rows.length == 3")
        assert page.run("return document.querySelector('.judged').hidden")  # there is no model whose scores could come
        assert "…" not in page.run("return document.getElementById('rows').innerText")
        page.run("const f = document.getElementById('filter'); f.value = 'queue'; f.onchange()")
        page.run("dispatchEvent(new KeyboardEvent('keydown', {key: 'f', ctrlKey: true}))")  # to find a word
        page.run("for (const n of [1, 2, 3]) dispatchEvent(new KeyboardEvent('keydown', {key: 's', repeat: n > 1}))")
        page.until("return state.shown && state.index == 1")
        page.press("f")
        page.until("return state.shown && state.index == 2")
        assert labels_of(unlabelled) == [True, False, None]
        page.press("s")
        page.until("return state.shown && state.rows.every(row => row.success !== null)")
        page.run("location.reload()")
        page.until("return state.shown && state.rows.map(row => row.success).join() == 'true,false,true'")


@needs_browser
def test_doubtful_labels_of_a_model_come_first_in_a_browser(unlabelled: View) -> None:
    shown = {n: np.zeros(4, bool) for n in range(3)}
    unlabelled.store.relabel(shown, {0: 0.05, 1: 0.4, 2: 0.9})
    calls: dict[str, Call] = {
        "episodes": unlabelled.episodes, "episode": unlabelled.episode, "label": unlabelled.label
    }  # fmt: skip
    with served("view.html", calls) as address, surfing(address) as page:
        page.until("return state.shown && state.index == 1")
        assert page.run("return chosen().map(row => row.index).join()") == "1,2,0"
        assert "by a model: 0.40" in page.run("return document.getElementById('rows').textContent")
        page.press("s")
        page.until("return state.shown && state.index == 2")
        assert page.run("return chosen().map(row => row.index).join()") == "2,0"


@needs_browser
def test_keys_drive_the_dream_in_a_browser(played: tuple[Play, View]) -> None:
    play, _ = played
    calls: dict[str, Call] = {"about": play.about, "reset": play.reset, "step": play.step}
    with served("play.html", calls) as address, surfing(address) as page:
        page.until("return state.states")
        page.run("document.getElementById('speed').value = 60")
        page.press("ArrowRight", hold=1.0)
        right = page.run("return state.states.dream[3][0]")
        page.press("ArrowLeft", hold=2.0)
        assert page.run("return state.states.dream[3][0]") < right - 0.2
        assert page.run("return state.policy") is False
        page.press("p")
        page.until("return state.policy && document.getElementById('line').textContent.startsWith('the policy acts')")
        page.press("n")
        assert page.until("return state.episode") == 1
        frames = page.run("return state.frames")
        page.until(f"return state.frames > {frames + 8}")
        assert page.run("return state.error") == ""


@needs_browser
def test_episodes_are_shown_in_a_browser(played: tuple[Play, View]) -> None:
    _, view = played
    view.best.clear()
    calls: dict[str, Call] = {"episodes": view.episodes, "episode": view.episode, "label": view.label}
    with served("view.html", calls) as address, surfing(address) as page:
        page.until("return state.shown && state.rows.length == 2 && state.rows.every(row => row.real !== undefined)")
        assert not page.run("return document.querySelector('.judged').hidden")
        rows = "return document.getElementById('rows').rows.length"
        assert page.run(rows) == 2
        page.run("const f = document.getElementById('filter'); f.value = 'failures'; f.onchange()")
        assert page.run(rows) == 2 - sum(record.succeeded for record in view.store.records())
        page.press("ArrowDown")
        page.until("return state.index == 1")
        assert page.run("return document.getElementById('dream').width") == 32
        page.ask("/window/rect", {"width": 640, "height": 700})
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")  # nothing to scroll to sideways


def test_commands_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (
        (["play", str(tmp_path)], "holds no run"),
        (["view", str(tmp_path / "none")], "none"),
        (["view", str(tmp_path), "--port", "99999"], "--port"),
    ):
        assert main(command) == 2
        assert said in capsys.readouterr().err
