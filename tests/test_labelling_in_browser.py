"""Labels by a person and by a model in turns, as `wmpo view` and `wmpo data label` make them, in a real browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from episodes_by_hand import make_store
from tests.browser import Browser
from tests.test_labelling import FIRST, QUICK, by_hand, lit
from tests.test_web import needs_browser, surfing
from wmpo.cli import main
from wmpo.data.records import EpisodeRecord
from wmpo.data.store import EpisodeStore

pytestmark = needs_browser
LABEL_BY_MODEL = ["--success", "model", *QUICK]


@contextmanager
def viewed(store: Path) -> Iterator[str]:
    """The address of `wmpo view`, in a process of its own."""
    command = [sys.executable, "-m", "wmpo.cli", "view", str(store), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=os.environ)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def records(root: Path) -> Sequence[EpisodeRecord]:
    return EpisodeStore.open(root).records()


def first_hit(root: Path, index: int) -> int | None:
    success = EpisodeStore.open(root).episode(index).success
    return int(success.argmax()) if success.any() else None


def queue(page: Browser) -> list[int]:
    """What is to be labelled, in the page's order."""
    page.run("const f = document.getElementById('filter'); f.value = 'queue'; f.onchange()")
    return [int(n) for n in page.run("return chosen().map(row => row.index).join()").split(",") if n]


def shown(page: Browser) -> int:
    page.until("return state.shown && state.shown.index === state.index")
    return int(page.run("return state.index"))


def say(page: Browser, key: str, frame: int | None = None) -> None:
    """Press a key at a frame, and wait until the label is stored and something is shown again."""
    page.run("state.playing = false; state.shown.seen = true")
    if frame is not None:
        page.run(f"const t = document.getElementById('time'); t.value = {frame}; t.oninput()")
    page.press(key)
    page.until("return state.shown && !state.shown.seen")


def say_truly(page: Browser) -> int:
    index = shown(page)
    say(page, "s" if index in FIRST else "f", FIRST.get(index))
    return index


def back(page: Browser, tab: str) -> None:
    """To another tab, which learns what has been said meanwhile."""
    page.go(tab)
    page.run("return refresh({}).then(() => true)")


def test_a_person_and_a_model_label_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_store(tmp_path / "store", [lit(n) for n in range(20)]).root
    with viewed(root) as address, surfing(address) as page:
        assert shown(page) == 0 and queue(page) == [*range(20)]
        assert [say_truly(page) for _ in range(6)] == [*range(6)]
        page.ask("/refresh", {})
        assert shown(page) == 6 and queue(page) == [*range(6, 20)]
        assert [say_truly(page) for _ in range(6)] == [*range(6, 12)]
        by_person = {n: first_hit(root, n) for n in range(12)}
        assert by_person == {n: FIRST.get(n) for n in range(12)}
        assert [row.by for row in records(root)] == ["person"] * 12 + ["unknown"] * 8

        assert main(["data", "label", str(root), *LABEL_BY_MODEL]) == 0  # in another process, while the page is open
        assert "labelled 8 episodes" in capsys.readouterr().out
        page.run("dispatchEvent(new Event('focus'))")  # one comes back to the page
        page.until("return state.rows.filter(row => row.by === 'model').length === 8")
        said = {row.index: row.probability or 0.0 for row in records(root) if row.by == "model"}
        assert queue(page) == sorted(said, key=lambda n: (abs(round(said[n], 4) - 0.5), n))
        page.ask("/refresh", {})
        first, doubtful = shown(page), queue(page)
        assert first == doubtful[0] and sorted(doubtful) == [*range(12, 20)]

        told = first_hit(root, doubtful[0])
        say(page, "c", frame=8)  # as the model says, whatever frame is shown
        assert first_hit(root, doubtful[0]) == told and shown(page) == doubtful[1]
        wrong = doubtful[1] in FIRST
        say(page, "f" if wrong else "s", frame=2)  # against the model
        assert first_hit(root, doubtful[1]) == (None if wrong else 2)
        say(page, "ArrowDown")  # this one is too hard
        assert say_truly(page) == doubtful[3] and shown(page) == doubtful[4]
        person = {doubtful[n]: first_hit(root, doubtful[n]) for n in (0, 1, 3)} | by_person
        assert [row.index for row in records(root) if row.by == "person"] == sorted(person)

        assert main(["data", "label", str(root), *LABEL_BY_MODEL]) == 0
        assert {n: first_hit(root, n) for n in person} == person
        assert [row.index for row in records(root) if row.by == "person"] == sorted(person)
        page.ask("/refresh", {})
        assert shown(page) == queue(page)[0]
        assert sorted(queue(page)) == sorted({*range(20)} - {*person})
        for _ in queue(page):
            say_truly(page)
        assert queue(page) == [] and {row.by for row in records(root)} == {"person"}
        assert "None is left" in page.run("return document.getElementById('line').textContent")


def test_keys_that_mean_nothing_change_nothing(tmp_path: Path) -> None:
    root = make_store(tmp_path / "store", [lit(n) for n in range(4)]).root
    by_hand(EpisodeStore.open(root), range(3, 4))
    with viewed(root) as address, surfing(address) as page:
        before = records(root)
        assert shown(page) == 0
        enter, escape, shift = "\ue007", "\ue00c", "\ue008"
        for key in ("x", "1", "q", enter, escape, shift, "c", "ß", "ArrowLeft", "ArrowRight"):
            page.press(key)
        for more in ("ctrlKey: true", "altKey: true", "metaKey: true", "repeat: true"):
            page.run(f"dispatchEvent(new KeyboardEvent('keydown', {{key: 's', {more}}}))")
        page.press("ArrowUp")  # there is none above
        page.run("return new Promise(done => setTimeout(done, 500))")
        assert shown(page) == 0 and records(root) == before
        (root / ".lock").unlink()
        (root / ".lock").mkdir()
        page.press("s")
        page.until("return document.getElementById('line').textContent.includes('could not be written')")
        (root / ".lock").rmdir()
        assert shown(page) == 0 and records(root) == before  # once more, then
        page.press("S")  # with Caps Lock
        page.until("return state.shown && state.index == 1")
        page.run("document.getElementById('filter').focus()")
        page.run("const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('change'))")
        page.press("F")  # to the page again, not to the list of filters, where F is "failures"
        page.until("return state.shown && state.index == 2")
        assert page.run("return document.getElementById('filter').value") == ""
        assert [row.succeeded for row in records(root)][:2] == [True, False]
        assert [row.by for row in records(root)] == ["person", "person", "unknown", "person"]


def test_two_tabs_and_a_model_at_one_store(tmp_path: Path) -> None:
    """What one has said, the other neither asks for again nor overwrites; labels that change under a page are shown."""
    root = make_store(tmp_path / "store", [lit(n) for n in range(8)]).root
    with viewed(root) as address, surfing(address) as page:
        assert shown(page) == 0
        one = page.here()
        other = page.tab(address)
        assert shown(page) == 0
        assert [say_truly(page) for _ in range(3)] == [0, 1, 2]
        back(page, one)
        say(page, "ArrowDown")
        assert shown(page) == 3  # not 1, which the other tab has said
        assert say_truly(page) == 3 and shown(page) == 4
        EpisodeStore.open(root).relabel({n: np.arange(9) >= 5 for n in range(4, 8)}, {4: 0.9, 5: 0.55, 6: 0.1, 7: 0.52})
        say(page, "ArrowDown")
        assert shown(page) == 5  # though all files of the store are new
        page.run("dispatchEvent(new Event('focus'))")
        page.until("return state.shown && state.shown.success[5]")
        back(page, other)
        assert shown(page) == 3
        say(page, "f")  # of what the first tab has said already: the last word counts
        assert not records(root)[3].succeeded and queue(page) == [7, 5, 4, 6] and shown(page) == 7
        say(page, "c")
        assert first_hit(root, 7) == 5 and shown(page) == 5
        assert [row.by for row in records(root)] == ["person"] * 4 + ["model"] * 3 + ["person"]
