from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from av.video.reformatter import VideoReformatter

from episodes_by_hand import SPEC, assert_same, make_episode, make_store
from wmpo.data import layout, parts
from wmpo.data import store as store_module
from wmpo.data.cache import FrameCache
from wmpo.data.initial_states import SPLITS, initial_states, split_of
from wmpo.data.normalizer import Normalizer
from wmpo.data.store import EpisodeStore
from wmpo.data.video import lossy
from wmpo.errors import UserError
from wmpo.io import files
from wmpo.types import EnvSpec


def test_episodes_come_back_bit_for_bit(tmp_path: Path) -> None:
    episodes = [make_episode(i, 5 + i, success=(3, 4) if i % 2 else ()) for i in range(5)]
    store = make_store(tmp_path, episodes[:3])
    store.append(episodes[3:])
    for opened in (store, EpisodeStore.open(tmp_path)):
        assert len(opened) == 5
        for kept, given in zip(opened, episodes, strict=True):
            assert_same(kept, given)
        for i in (4, 0, 2, 3, 1):
            assert_same(opened.episode(i), episodes[i])
        for kept, i in zip(opened.episodes([4, 0, 3, 0]), [4, 0, 3, 0], strict=True):
            assert_same(kept, episodes[i])
        assert opened.episodes([]) == []
        with pytest.raises(UserError, match="no episode 5"):
            opened.episodes([1, 5])


def test_first_frames_are_found_by_seeking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = [make_episode(n, 30 + n, source="expert") for n in range(4)]
    store = make_store(tmp_path, episodes[:3])
    store.append(episodes[3:])
    decoded: list[int] = []
    reformat = VideoReformatter.reformat
    monkeypatch.setattr(
        "wmpo.data.video.VideoReformatter",
        lambda: SimpleNamespace(reformat=lambda *given, **how: decoded.append(1) or reformat(own, *given, **how)),
    )
    own = VideoReformatter()
    for order in ([2, 0, 3], [1]):
        decoded.clear()
        for index, found in zip(order, store.with_first_frames(order), strict=True):
            images = {name: frames[:1] for name, frames in episodes[index].images.items()}
            assert_same(found, dataclasses.replace(episodes[index], images=images))
        assert len(decoded) == len(order) * len(SPEC.cameras)
    with pytest.raises(UserError, match="no episode 4"):
        store.with_first_frames([0, 4])


def test_any_number_of_dimensions(tmp_path: Path) -> None:
    for state_dim, action_dim in ((0, 1), (1, 7)):
        spec = EnvSpec({"front": (8, 8)}, state_dim, action_dim, 20, 20)
        episode = make_episode(1, 4, spec=spec)
        store = make_store(tmp_path / str(state_dim), [episode], spec)
        assert EpisodeStore.open(store.root).spec == spec
        assert_same(store.episode(0), episode)
        assert FrameCache(store).state.shape == (5, state_dim)
        assert Normalizer.from_cache(FrameCache(store), [0]).state_std.shape == (state_dim,)


def test_labels_are_kept(tmp_path: Path) -> None:
    store = make_store(tmp_path, [make_episode(0, 4), make_episode(1, 4, labels=True)])
    assert [record.labelled for record in store.records()] == [False, True]
    label = store.columns(0, layout.LABEL)
    assert np.array_equal(label[:4], store.episode(0).actions)
    assert np.array_equal(label[5:9], -store.episode(1).actions)
    assert store.episode(0).labels is None
    assert np.array_equal(store.episode(1).labels, -store.episode(1).actions)


def test_long_appends_are_cut_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PART_SECONDS", 1)  # 10 frames at 10 Hz
    episodes = [make_episode(i, length) for i, length in enumerate((3, 5, 12, 4))]  # 4, 6, 13 and 5 frames
    store = make_store(tmp_path, episodes)
    assert [record.part for record in store.records()] == [0, 0, 1, 2]
    assert [record.offset for record in store.records()] == [0, 4, 0, 0]
    assert [record.first_frame for record in store.records()] == [0, 4, 10, 23]
    for kept, given in zip(store, episodes, strict=True):
        assert_same(kept, given)


def test_select_and_summary(tmp_path: Path) -> None:
    [shown] = initial_states("demonstrate", 0, 1)
    episodes = [
        make_episode(0, 3, success=(3,), source="expert", initial_state=shown),
        make_episode(1, 3, source="base"),
        make_episode(2, 5, success=(1, 2), source="base"),
        make_episode(3, 3, source="base"),
    ]
    store = make_store(tmp_path, episodes)
    assert store.select() == [0, 1, 2, 3]
    assert store.select(source="base") == store.select(split="collect") == [1, 2, 3]
    assert store.select(split="demonstrate") == [0]
    assert store.select(source="base", success=True) == [2]
    assert store.select(task="stack") == []
    summary = store.summary()
    assert (summary.episodes, summary.frames) == (4, 4 + 4 + 6 + 4)
    assert summary.by_source == {"expert": 1, "base": 3}
    assert summary.success_rate == {"expert": 1.0, "base": 1 / 3}


def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The append is stopped before each of its file replacements in turn; the last one is the commit."""
    spec = dataclasses.replace(SPEC, cameras={"wrist": (8, 8)})
    old = [make_episode(i, 4, spec=spec) for i in range(2)]
    new = [make_episode(i, 6, spec=spec) for i in range(2, 4)]
    after = [make_episode(9, 3, spec=spec)]
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # matters in power cuts only

    class Killed(BaseException):
        pass

    def dying(moment: int):
        count = itertools.count()

        def replace(*paths: Path) -> None:
            if next(count) == moment:
                raise Killed
            os.rename(*paths)

        return replace

    for moment in range(20):
        store = make_store(tmp_path / str(moment), old, spec)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", dying(moment))
            patch.setattr(layout, "PART_SECONDS", 1)  # two parts, so that leftovers outnumber what comes after
            try:
                store.append(new)
            except Killed:
                pass
            else:
                break
        for kept in (store, EpisodeStore.open(store.root)):
            assert len(kept) == 2
            assert_same(kept.episode(1), old[1])
        EpisodeStore.open(store.root).append(after)
        kept = EpisodeStore.open(store.root)
        for episode, given in zip(kept, old + after, strict=True):
            assert_same(episode, given)
        found = {path for path in store.root.rglob("file-*")}
        assert found == {path for part in range(2) for path in layout.part_paths(store.root, part, spec)}
    else:
        pytest.fail("an append should not take 20 replacements")
    assert moment == 2 * 3 + 2  # data, video and episodes of two parts; statistics, info; there is no new task
    assert len(EpisodeStore.open(store.root)) == 4


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, [make_episode(0, 3)])

    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(UserError, match="No space left"):
            store.append([make_episode(1, 3)])
    store.append([make_episode(2, 3)])
    assert [int(episode.state[0, 0]) for episode in EpisodeStore.open(tmp_path)] == [0, 2]


def test_two_writers_take_turns(tmp_path: Path) -> None:
    one = make_store(tmp_path, [make_episode(0, 3)])
    two = EpisodeStore.open(tmp_path)
    one.append([make_episode(1, 3)])
    two.append([make_episode(2, 3)])
    assert [int(episode.state[0, 0]) for episode in EpisodeStore.open(tmp_path)] == [0, 1, 2]


def test_lossy_video_stays_close(tmp_path: Path) -> None:
    spec = EnvSpec({"front": (64, 64)}, 0, 1, 20, 10)
    episode = make_episode(100, 4, spec=spec)
    episode.images["front"][..., 2] = 50
    store = EpisodeStore.create(tmp_path, spec, lossy())
    store.append([episode])
    image = EpisodeStore.open(tmp_path).episode(0).images["front"].astype(int)
    assert np.abs(image - episode.images["front"]).max() < 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": {"front": np.zeros((5, 16, 24, 3), np.uint8)}}, "cameras"),
        ({"images": {n: np.zeros((5, 16, 16, 3), np.uint8) for n in SPEC.cameras}}, "size"),
        ({"actions": np.full((4, 3), np.nan, np.float32)}, "NaN .* frame 0"),
        ({"actions": np.zeros((4, 2), np.float32)}, "actions"),
        ({"state": np.full((5, 2), np.inf, np.float32)}, "infinite states"),
        ({"state": np.zeros((4, 2), np.float32)}, "states"),
        ({"success": np.zeros(4, bool)}, "success"),
        ({"actions": np.zeros((0, 3), np.float32)}, "no actions"),
    ],
)
def test_bad_episodes_are_refused_and_nothing_is_lost(tmp_path: Path, change: dict, words: str) -> None:
    good = make_episode(0, 4)
    store = make_store(tmp_path, [good])
    with pytest.raises(UserError, match=words):
        store.append([make_episode(1, 4), dataclasses.replace(make_episode(2, 4), **change)])
    assert len(EpisodeStore.open(tmp_path)) == 1
    assert_same(EpisodeStore.open(tmp_path).episode(0), good)


def test_damage_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no episode store"):
        EpisodeStore.open(tmp_path)
    store = make_store(tmp_path, [make_episode(0, 9), make_episode(1, 9)])
    with pytest.raises(UserError, match="already"):
        EpisodeStore.create(tmp_path, SPEC)
    with pytest.raises(UserError, match="no episode 2"):
        store.episode(2)

    def truncated(path: Path, share: float) -> Path:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        return path

    def check(path: Path, share: float) -> None:
        whole = path.read_bytes()
        truncated(path, share)
        with pytest.raises(UserError, match=path.name):
            EpisodeStore.open(tmp_path).episode(1)
        path.unlink()
        with pytest.raises(UserError, match="missing" if path.suffix != ".json" else "no episode store"):
            EpisodeStore.open(tmp_path).episode(1)
        path.write_bytes(whole)
        assert_same(EpisodeStore.open(tmp_path).episode(1), make_episode(1, 9))

    check(layout.data_path(tmp_path, 0), 0.7)
    check(layout.episodes_path(tmp_path, 0), 0.5)
    check(layout.video_path(tmp_path, 0, "front"), 0.3)
    check(layout.video_path(tmp_path, 0, "front"), 0.9)
    check(layout.video_path(tmp_path, 0, "wrist"), 0.0)
    check(tmp_path / layout.INFO, 0.5)


def test_open_or_create(tmp_path: Path) -> None:
    store = EpisodeStore.open_or_create(tmp_path, SPEC)
    assert len(store) == 0
    store.append([make_episode(0, 3)])
    assert len(EpisodeStore.open_or_create(tmp_path, SPEC)) == 1
    with pytest.raises(UserError, match="another environment"):
        EpisodeStore.open_or_create(tmp_path, dataclasses.replace(SPEC, fps=20))


def test_starts_of_different_splits_and_rounds_never_meet() -> None:
    n = 1 << 16
    seen: set[int] = set()
    total = 0
    for split in SPLITS:
        for round in (0, 31):
            numbers = initial_states(split, 7, n, round)
            assert numbers[0] >= 0 and numbers[-1] < 1 << 32
            assert {split_of(number) for number in (numbers[0], numbers[-1])} == {split}
            seen.update(numbers)
            total += n
    assert len(seen) == total
    ranges = [initial_states(split, seed, n)[:: n - 1] for split in SPLITS for seed in (0, 1, 255)]
    assert all(left[1] < right[0] for left, right in itertools.pairwise(sorted(ranges)))


def test_starts_repeat_and_extend() -> None:
    assert initial_states("collect", 3, 5) == initial_states("collect", 3, 9)[:5]
    assert initial_states("collect", 3, 5) != initial_states("collect", 4, 5)
    assert initial_states("demonstrate", 0, 3) == [0, 1, 2]
    for wrong in (("nonsense", 0, 1, 0), ("collect", 0, 1 << 17, 0), ("collect", 0, 1, 32)):
        with pytest.raises(UserError):
            initial_states(*wrong)
    assert split_of(2**32) == split_of(-1) == "other"


def test_the_beginning_of_an_episode() -> None:
    episode = make_episode(3, 8, success=(5, 6), labels=True)
    begin = episode.first(4)
    assert begin.length == 4 and not begin.succeeded and begin.finish_step == 4 and episode.first(5).finish_step == 5
    assert_same(begin, dataclasses.replace(
        episode, images={name: frames[:5] for name, frames in episode.images.items()}, state=episode.state[:5],
        actions=episode.actions[:4], success=episode.success[:5], labels=None,
    ))  # fmt: skip
    assert episode.labels is not None and np.array_equal(begin.labels, episode.labels[:4])
    assert episode.first(8) is episode and episode.first(100) is episode
    assert make_episode(3, 8).first(2).labels is None


def test_episodes_one_by_one_end_in_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts are merged, bit for bit, however often the store is opened in between."""
    monkeypatch.setattr(store_module, "MERGE", 4)
    episodes = [make_episode(i, 2 + i % 5, success=(1,) if i % 3 else (), labels=i % 4 == 0) for i in range(11)]
    store = EpisodeStore.create(tmp_path, SPEC)
    for i, episode in enumerate(episodes):
        store.append([episode])
        assert len(EpisodeStore.open(tmp_path)) == i + 1
        if i in (5, 6):
            FrameCache(store)
    assert (store.files, store.parts) == ([4, 9, 10, 11, 12], 5)
    cache = FrameCache(store)
    assert np.array_equal(
        cache.images["front"].transpose(0, 2, 3, 1), np.concatenate([episode.images["front"] for episode in episodes])
    )
    for opened in (store, EpisodeStore.open(tmp_path)):
        for kept, given in zip(opened, episodes, strict=True):
            assert_same(kept, given)
        for i in (7, 0, 10):
            assert_same(opened.episode(i), episodes[i])
    found = set(tmp_path.rglob("*file-*"))
    assert found == {path for file in store.files for path in layout.part_paths(tmp_path, file, SPEC)}


def test_statistics_keep_up_with_episodes_one_by_one(tmp_path: Path) -> None:
    episodes = [make_episode(i, 2 + i % 5, labels=i % 4 == 0) for i in range(20)]
    one_by_one, at_once = EpisodeStore.create(tmp_path / "a", SPEC), make_store(tmp_path / "b", episodes)
    for episode in episodes:
        one_by_one.append([episode])
    found, wanted = (json.loads((store.root / layout.STATS).read_text()) for store in (one_by_one, at_once))
    assert found.keys() == wanted.keys()
    for key in wanted:
        for name in ("min", "max", "mean", "std", "count"):
            assert np.allclose(found[key][name], wanted[key][name]), (key, name)
    assert np.allclose(found["action"]["q50"], wanted["action"]["q50"], atol=2)


def test_what_an_append_costs_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in files read; merging and exact quantiles come seldom."""
    store = EpisodeStore.create(tmp_path, SPEC)
    opened = itertools.count()
    read = pq.ParquetFile.__init__

    def counted(self: pq.ParquetFile, *args: object, **more: object) -> None:
        next(opened)
        read(self, *args, **more)

    monkeypatch.setattr(pq.ParquetFile, "__init__", counted)
    costs = []
    for i in range(100):
        before = next(opened)
        store.append([make_episode(i, 2)])
        costs.append(next(opened) - before - 1)
    assert np.median(costs[:50]) == np.median(costs[50:]) <= 4
    assert sum(costs[50:]) <= 2 * sum(costs[:50])


def test_a_merge_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MERGE", 3)
    episodes = [make_episode(i, 3) for i in range(4)]
    store = make_store(tmp_path, episodes[:1])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_join", full)
        for episode in episodes[1:3]:
            store.append([episode])
    assert store.files == [0, 1, 2] and len(list(tmp_path.rglob("*file-*"))) == 3 * 4
    store.append(episodes[3:])
    assert store.files == [3, 4] or store.files == [4]
    for kept, given in zip(EpisodeStore.open(tmp_path), episodes, strict=True):
        assert_same(kept, given)


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "data.md"
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in page.read_text().split("```python")[1:] if "Episode(" in block)
    exec(example.partition("```")[0], {})
    assert EpisodeStore.open("my_data").episode(0).finish_step == 40
