"""The page and the table at a run's end, made from invented numbers."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from wmpo.config import Recipe
from wmpo.errors import UserError
from wmpo.report import Clip, Media, Pair, ScoreCurve, sections, terminal_table, write_report
from wmpo.report.charts import Bar, rate_bars, ticks
from wmpo.report.media import panorama
from wmpo.report.results import (
    Agreement,
    Fidelity,
    Gap,
    Interactions,
    PolicyResult,
    RewardQuality,
    RunResult,
    Stage,
    StateFidelity,
)
from wmpo.report.video import decode_mp4, encode_mp4, encode_png, filmstrip, side_by_side, with_progress
from wmpo.report.words import headline, points, policy_kind, policy_name, short_name
from wmpo.types import Episode


def moving_square(steps: int, speed: float = 1.0, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    frames = np.full((steps, 64, 64, 3), (225, 222, 215), np.uint8)
    frames[:, 20:44, 44:62] = (120, 190, 130)
    for t in range(steps):
        x = min(48, int(4 + speed * t))
        frames[t, 26:36, x : x + 10] = (200, 60, 50)
    blur = np.random.default_rng(seed).normal(0, noise, frames.shape)
    return np.clip(frames + blur, 0, 255).astype(np.uint8)


def invented_result(episodes: int = 256, before: float = 0.3, after: float = 0.52, control: bool = True) -> RunResult:
    rng = np.random.default_rng(0)
    difficulty = rng.random(episodes)

    def policy(rate: float, steps: int) -> PolicyResult:
        success = [int(x) for x in difficulty + rng.normal(0, 0.15, episodes) < rate]
        finish = [int(rng.integers(steps - 6, steps + 6)) if s else 0 for s in success]
        return PolicyResult(list(range(1000, 1000 + episodes)), success, finish)

    result = RunResult.begin(Recipe())
    result.policies = {"base": policy(before, 18), "wmpo": policy(after, 15)}
    if control:
        result.policies["control"] = policy(before, 18)
    result.interactions = {
        "demonstrations": Interactions(500, 15321),
        "rollouts": Interactions(128, 4412),
        "practice_resets": Interactions(256, 0),
        "evaluation": Interactions(768, 24111),
    }
    times = {"demonstrations": 41, "policy": 260, "collect": 14, "world_model": 520, "reward": 65}
    times |= {"practice": 140, "practice_control": 138, "evaluate": 60}
    result.stages = {name: Stage(float(value), 700 + 5.0 * value) for name, value in times.items()}
    result.reward = RewardQuality(0.62, 0.91, 0.86, 0.88, 0.93, 0.04, 0.96, 16, 6)
    result.fidelity = [
        Fidelity(8, 29.1, 0.95, 1.2, 21.3, 0.87, 6.8, 16),
        Fidelity(32, 26.0, 0.91, 2.4, 19.6, 0.84, 9.9, 16),
        Fidelity(40, 25.6, 0.9, float("nan"), 19.2, 0.83, 10.4, 16),
    ]
    result.agreement = Agreement(0.88, 0.83, 0.83, 0.83, 16, 6)
    result.gaps = {"wmpo": Gap(0.57, 128, 0.52, 256)}
    for name, top in (("practice", 0.45), ("control", 0.0)):
        rise = [0.2 + top * (1 - np.exp(-i / 9)) + rng.normal(0, 0.02) for i in range(30)]
        result.curves[name] = {
            "success": [(i + 1, float(value)) for i, value in enumerate(rise)],
            "groups_kept": [(i + 1, float(rng.integers(8, 16))) for i in range(30)],
        }
    return result


def invented_media() -> Media:
    real, dream = moving_square(40), moving_square(40, 1.03, 9.0)
    slow = moving_square(40, 0.6)
    pair = Pair(Clip(real, 38), Clip(dream, 37), "real", "imagined", "Held-out episode 7: a success, imagined as one.")
    other = Pair(Clip(slow), Clip(moving_square(40, 0.62, 9.0)), "real", "imagined", "Held-out episode 9: a failure.")
    policies = Pair(Clip(slow), Clip(real, 38), "before", "after practice", "Start 1003.")
    scores = [0.02 if t < 30 else 0.05 + 0.09 * (t - 30) for t in range(41)]
    curves = [ScoreCurve(scores, 37, "A success"), ScoreCurve([float("nan"), *[0.1] * 40], None, "A failure")]
    return Media([pair, other], [policies], curves)


class Checker(HTMLParser):
    """Complains about tags that don't match, and collects everything that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "rect", "line", "circle", "path", "br"):
            self.open.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def read_page(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker


def test_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    result = invented_result()
    path = write_report(result, invented_media(), tmp_path / "deep" / "report.html")
    page = read_page(path)
    assert len(page.sources) == 3 and all(source.startswith("data:video/mp4;base64,") for source in page.sources)
    assert "http" not in re.sub(r"data:video/mp4;base64,[A-Za-z0-9+/=]+", "", path.read_text())
    assert path.stat().st_size < 1_000_000
    assert "nan" not in page.words.lower().replace("tenance", "")
    for name in ("base", "wmpo"):
        rate = result.policies[name].rate
        assert f"{sum(result.policies[name].success)} of 256" in page.words
        assert f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %" in page.words
    video = decode_mp4(base64.b64decode(page.sources[0].partition(",")[2]))
    assert video.shape == (50, 64 * 4 + 6, 2 * 64 * 4 + 4, 3)


def test_page_of_a_run_that_measured_little(tmp_path: Path) -> None:
    empty = RunResult.begin(Recipe())
    page = read_page(write_report(empty, Media(), tmp_path / "a.html"))
    assert "not been evaluated" in page.words
    empty.policies["base"] = PolicyResult([1, 2], [0, 0], [0, 0])
    read_page(write_report(empty, Media(), tmp_path / "b.html"))


def test_fidelity_tells_every_camera_and_the_state() -> None:
    result = invented_result()
    assert "state 0" not in sections.fidelity(result)
    result.fidelity.append(Fidelity(40, 22.2, 0.8, 3.0, 11.1, 0.4, 9.0, 16, "wrist"))
    result.state_fidelity = [StateFidelity(40, [0.0123, 0.5], [0.6, 0.7], 0.15, 1.25, 16)]
    page = sections.fidelity(result)
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(<td>.*?)</tr>", page)]
    assert [row[:3] for row in rows[2:4]] == [["front", "40", "25.6 (19.2)"], ["wrist", "40", "22.2 (11.1)"]]
    assert rows[4] == ["40", "0.15 (1.25)", "0.012 (0.600)", "0.500 (0.700)"]


def test_text_is_escaped(tmp_path: Path) -> None:
    media = invented_media()
    media.scores = [ScoreCurve([0.1, 0.2], None, "<script>alert(1)</script> & more")]
    path = write_report(invented_result(), media, tmp_path / "r.html")
    assert "<script>" not in path.read_text()
    assert "<script>alert(1)</script> & more" in read_page(path).words


def test_names_over_several_rounds() -> None:
    assert policy_name("wmpo") == policy_name("wmpo-1") == "After practice in imagination"
    assert policy_name("wmpo-2") == "After round 2 of practice" and short_name("practice-2") == "after round 2"
    kinds = {
        "base": "base",
        "wmpo-3": "wmpo",
        "practice": "wmpo",
        "control": "control",
        "wmpo-x": "other",
        "dpo": "other",
    }
    assert {name: policy_kind(name) for name in kinds} == kinds


def test_real_success_stands_where_practice_ended(tmp_path: Path) -> None:
    page = write_report(invented_result(), Media(), tmp_path / "r.html").read_text()
    places = re.findall(r'class="fill-(\w+) ring" cx="([\d.]+)" cy="[\d.]+" r="5.5"', page)
    assert places == [("base", "60.0"), ("wmpo", "624.0"), ("control", "624.0")]


def test_headline_says_what_the_interval_allows() -> None:
    gain = headline(invented_result())
    assert "a gain of" in gain and "256 real situations" in gain
    same = headline(invented_result(after=0.3))
    assert "may be chance" in same and "a gain" not in same
    assert "a loss of" in headline(invented_result(after=0.1))


def test_terminal_table() -> None:
    text = io.StringIO()
    result = invented_result()
    Console(file=text, width=120).print(terminal_table(result))
    base = result.policies["base"].rate
    assert f"of 256 ({100 * base.value:.1f} %)" in text.getvalue()
    assert "After practice in imagination" in text.getvalue()


def of_two_tasks() -> RunResult:
    result = invented_result()
    task = ["place-blue" if start % 3 == 0 else "place" for start in result.policies["base"].initial_states]
    result.policies = {name: replace(policy, task=task) for name, policy in result.policies.items()}
    return result


def test_the_success_of_each_task_is_shown(tmp_path: Path) -> None:
    result, text = of_two_tasks(), io.StringIO()
    Console(file=text, width=120).print(terminal_table(result))
    page = read_page(write_report(result, Media(), tmp_path / "r.html")).words
    part, gain = result.of_task("place-blue"), result.summary().tasks["place-blue"].gains["wmpo"]
    for name in ("base", "wmpo", "control"):
        rate, count = part.policies[name].rate, len(part.policies[name].initial_states)
        assert f"of {count} ({100 * rate.value:.1f} %)" in text.getvalue() and 80 < count < 90
        assert f"{sum(part.policies[name].success)} of {count}" in page
        assert f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %" in page
    for shown in (text.getvalue(), page):
        assert points(gain.difference) in shown
    assert text.getvalue().count("After practice in imagination") == 3  # all, place, place-blue
    assert page.index("place-blue") < page.index(f"{sum(part.policies['base'].success)} of")


def timed_result() -> RunResult:
    """Four initial states with a horizon of 20, in a time limit of 40."""
    result = RunResult.begin(Recipe())
    counted = {"grasps": [1, 2, 1, 0], "drops": [0, 1, 0, 0], "disturbances": [0, 1, 0, 0]}
    for name, frames in (("base", [18, 25, 40, 0]), ("wmpo-1", [9, 10, 40, 0])):
        hits = [int(0 < frame <= 20) for frame in frames]
        result.policies[name] = PolicyResult([1, 2, 3, 4], hits, frames, horizon=20, time_limit=40, events=counted)
    return result


def cells_of(html: str) -> list[list[str]]:
    """Rows of the tables in it."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [[re.sub("<.*?>", "", cell).strip() for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)]
            for row in rows if "<td" in row]  # fmt: skip


def test_success_against_time_by_hand(tmp_path: Path) -> None:
    shown = sections.pace(timed_result())
    assert [row[1:] for row in cells_of(shown)] == [["25 %", "50 %", "75 %"], ["50 %", "50 %", "75 %"]]
    for time in ("within 20 actions", "within 30 actions", "within 40 actions"):
        assert time in shown
    short = timed_result()
    short.policies = {name: replace(policy, time_limit=30) for name, policy in short.policies.items()}
    assert [row[1:] for row in cells_of(sections.pace(short))] == [["25 %", "50 %"], ["50 %", "50 %"]]
    assert sections.pace(invented_result()) == ""  # nothing is known of its horizon
    page = read_page(write_report(timed_result(), Media(), tmp_path / "r.html")).words
    assert "Success against time" in page and "What practice changed" in page


def test_what_practice_changed_by_hand() -> None:
    rows = [row[1:] for row in cells_of(sections.events(timed_result()))]
    # The second episode was disturbed, the third gripped in vain; practice succeeds in the second.
    assert rows == [["1.00", "0.25", "0.25", "0 % of 2"], ["1.00", "0.25", "0.25", "50 % of 2"]]
    assert sections.events(invented_result()) == ""


def test_bars_end_where_the_rates_are() -> None:
    chart = rate_bars([Bar("a", 0.5, 0.4, 1.0, "base"), Bar("b", 0.25, 0.2, 0.3, "wmpo")])
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', chart)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    assert widths[0] == pytest.approx((640 - 70 - 8) / 2, abs=0.2)
    low = rate_bars([Bar("a", 0.2, 0.1, 0.35, "base")])  # the axis ends at 40 %
    assert float(re.findall(r'<rect[^>]* width="([\d.]+)"', low)[0]) == pytest.approx((640 - 70 - 8) / 2, abs=0.2)


def test_ticks() -> None:
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 30, 6) == [0, 5, 10, 15, 20, 25, 30]
    assert ticks(0, 40, 6) == [0, 10, 20, 30, 40]


def test_video_round_trip() -> None:
    frames = moving_square(12)
    decoded = decode_mp4(encode_mp4(frames, pause=0.5))
    assert decoded.shape == (17, 64, 64, 3)
    assert np.abs(decoded[:12].astype(int) - frames).mean() < 6
    assert np.abs(decoded[-1].astype(int) - frames[-1]).mean() < 6
    assert decode_mp4(encode_mp4(frames[:, :63, :61], pause=0)).shape == (12, 64, 62, 3)


def test_side_by_side_holds_the_shorter_one() -> None:
    left, right = moving_square(3), moving_square(5)
    both = side_by_side(left, right, factor=2, success_at=(1, None))
    assert both.shape == (5, 128 + 6, 128 + 4 + 128, 3)
    assert (both[4, :128, :128] == left[2].repeat(2, 0).repeat(2, 1)).all()
    assert (both[4, :128, 132:] == right[4].repeat(2, 0).repeat(2, 1)).all()
    with pytest.raises(UserError, match="side by side"):
        side_by_side(left, right[:, :32])


def test_progress_bar() -> None:
    frames = with_progress(np.zeros((4, 8, 8, 3), np.uint8), success_at=2, height=2)
    assert frames.shape == (4, 10, 8, 3)
    assert [int((frame[9] != 40).any(-1).sum()) for frame in frames] == [2, 4, 6, 8]
    assert (frames[1, 9, 0] == 150).all() and tuple(frames[2, 9, 0]) == (38, 166, 91)


def test_clip_of_an_episode() -> None:
    success = np.array([False, False, True, True])
    episode = Episode(
        {"front": moving_square(4)}, np.zeros((4, 0)), np.zeros((3, 2)), success, "push", 7, "push", "base"
    )
    clip = Clip.of(episode)
    assert clip.success_at == 2 and np.array_equal(clip.frames, episode.images["front"])
    episode.success = np.zeros(4, bool)
    assert Clip.of(episode).success_at is None


def test_cameras_stand_side_by_side_in_their_order() -> None:
    wrist, front = moving_square(2), 255 - moving_square(2)[:, :32]  # of 64 and of 32 rows
    both = panorama({"wrist": wrist, "front": front})
    assert both.shape == (2, 64, 64 + 1 + 64, 3)
    assert np.array_equal(both[:, :, :64], wrist) and np.array_equal(both[:, :32, 65:], front)
    assert not both[:, :, 64].any() and not both[:, 32:, 65:].any()


def test_filmstrip_and_png() -> None:
    strip = filmstrip([moving_square(9), moving_square(5)], columns=3, factor=2)
    assert strip.shape == (2 * 128 + 4, 3 * 128 + 2 * 4, 3)
    assert (strip[:128, -128:] == moving_square(9)[8].repeat(2, 0).repeat(2, 1)).all()
    assert (np.asarray(Image.open(io.BytesIO(encode_png(strip)))) == strip).all()


def test_headline_of_what_has_learned_nothing() -> None:
    none = replace(invented_result(), policies={
        name: PolicyResult([1, 2, 3], [0, 0, 0], [0, 0, 0]) for name in ("base", "wmpo-1")
    })  # fmt: skip
    assert headline(none).startswith("Neither before practice nor after it")
    small = replace(none, recipe={**none.recipe, "name": "smoke"})
    assert "too small to learn" in headline(small) and "too small" not in headline(none)
