"""Stores that were damaged, or made to do harm: each is refused in one sentence that names the file, nothing is taken
silently, nothing is changed."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from episodes_by_hand import SPEC, make_episode
from wmpo.data import layout
from wmpo.data import video as video_module
from wmpo.data.cache import CACHE, FrameCache
from wmpo.data.store import EpisodeStore
from wmpo.data.video import LOSSLESS, Codec, lossy, write_video
from wmpo.errors import UserError
from wmpo.io.files import file_lock
from wmpo.io.plain import from_plain

Damage = Callable[[Path], object]
FRAMES, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
FRONT = "videos/observation.images.front/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of 5, 6 and 7 frames; the last one has labels."""
    root = tmp_path_factory.mktemp("whole")
    store = EpisodeStore.create(root, SPEC)
    store.append([make_episode(n, 4 + n, success=(2,) if n else (), labels=n == 2) for n in range(3)])
    return root


def info(*path: str | int, value: Any) -> Damage:
    """Set a field of info.json; ... removes it."""

    def damage(root: Path) -> None:
        content = json.loads((root / layout.INFO).read_text())
        at = content
        for name in path[:-1]:
            at = at[name]
        if value is ...:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        (root / layout.INFO).write_text(json.dumps(content))

    return damage


def renamed(camera: str) -> Damage:
    """A camera of this name in info.json."""

    def damage(root: Path) -> None:
        content = json.loads((root / layout.INFO).read_text())
        content["features"][layout.video_key(camera)] = content["features"].pop(layout.video_key("front"))
        (root / layout.INFO).write_text(json.dumps(content))

    return damage


def replaced(file: str, content: bytes | str) -> Damage:
    return lambda root: (root / file).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(file: str, share: float) -> Damage:
    def damage(root: Path) -> None:
        kept = (root / file).read_bytes()
        (root / file).write_bytes(kept[: int(len(kept) * share)])

    return damage


def column(file: str, name: str, change: Callable[[list[Any]], Any] | None) -> Damage:
    """Change the values of a column; None removes it."""

    def damage(root: Path) -> None:
        table = pq.read_table(root / file, partitioning=None)
        place = table.column_names.index(name)
        if change is None:
            table = table.remove_column(place)
        else:
            values = change(table[name].to_pylist())
            if isinstance(values, list):
                try:
                    values = pa.array(values, table[name].type)
                except (pa.ArrowException, TypeError):
                    values = pa.array(values)
            table = table.set_column(place, name, values)
        pq.write_table(table, root / file)

    return damage


def rows(file: str, change: Callable[[pa.Table], pa.Table]) -> Damage:
    return lambda root: pq.write_table(change(pq.read_table(root / file, partitioning=None)), root / file)


def put(row: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value if n == row else old for n, old in enumerate(values)]


def part(row: int, value: float) -> Callable[[list[Any]], list[Any]]:
    """Of a vector, the second number."""
    return lambda values: [[*old[:1], value, *old[2:]] if n == row else old for n, old in enumerate(values)]


def video(fps: int = 10, size: tuple[int, int] = (16, 24), frames: int = 18, codec: Codec = LOSSLESS) -> Damage:
    return lambda root: write_video(root / FRONT, [np.zeros((frames, *size, 3), np.uint8)], fps, codec)


def folder(file: str) -> Damage:
    def damage(root: Path) -> None:
        (root / file).unlink()
        (root / file).mkdir()

    return damage


def playlist(root: Path) -> None:
    """A list of other files in place of a video."""
    (root / FRONT).rename((root / FRONT).with_name("other.mp4"))
    (root / FRONT).write_text("ffconcat version 1.0\nfile other.mp4\n")


def swap(values: list[Any]) -> list[Any]:
    """Episodes 0 and 1 by each other's number."""
    return [{0: 1, 1: 0}.get(value, value) for value in values]


DAMAGES: dict[str, tuple[Damage, str]] = {
    # meta/info.json
    "info: no JSON": (replaced(layout.INFO, "{ nonsense"), "info.json"),
    "info: cut short": (cut(layout.INFO, 0.5), "info.json"),
    "info: empty": (replaced(layout.INFO, ""), "info.json"),
    "info: null": (replaced(layout.INFO, "null"), "info.json"),
    "info: a list": (replaced(layout.INFO, "[1]"), "info.json"),
    "info: a number": (replaced(layout.INFO, "7"), "info.json"),
    "info: not UTF-8": (replaced(layout.INFO, b'{"fps": "\xff\xfe"}'), "UTF-8"),
    "info: deeply nested": (replaced(layout.INFO, "[" * 100_000), "info.json"),
    "info: a number of 5,000 digits": (replaced(layout.INFO, '{"fps": ' + "9" * 5000 + "}"), "info.json"),
    "info: a folder": (folder(layout.INFO), "info.json is no file"),
    "info: missing": (lambda root: (root / layout.INFO).unlink(), "no episode store"),
    "info: features null": (info("features", value=None), "info.json"),
    "info: features a list": (info("features", value=["action"]), "info.json"),
    "info: no action": (info("features", "action", value=...), "'action'"),
    "info: action null": (info("features", "action", value=None), "'action'"),
    "info: action without shape": (info("features", "action", "shape", value=...), "'action'"),
    "info: shape as text": (info("features", "action", "shape", value="3"), "'action'"),
    "info: shape of fractions": (info("features", "action", "shape", value=[3.5]), "'action'"),
    "info: other labels than actions": (info("features", layout.LABEL, "shape", value=[5]), "label.action has 5"),
    "info: another state": (info("features", layout.STATE, "shape", value=[5]), "observation.state has 5"),
    "info: state_dim as text": (info("wmpo", "state_dim", value="two"), "state_dim"),
    "info: state_dim below 0": (info("wmpo", "state_dim", value=-1), "state_dim"),
    "info: horizon null": (info("wmpo", "horizon", value=None), "horizon"),
    "info: horizon of 10^12": (info("wmpo", "horizon", value=10**12), "horizon"),
    "info: horizon true": (info("wmpo", "horizon", value=True), "horizon"),
    "info: wmpo null": (info("wmpo", value=None), "info.json: wmpo"),
    "info: wmpo a list": (info("wmpo", value=[]), "info.json: wmpo"),
    "info: an unknown field": (info("wmpo", "colour", value=1), "colour"),
    "info: fps 0": (info("fps", value=0), "fps is 0"),
    "info: fps null": (info("fps", value=None), "fps is None"),
    "info: fps as text": (info("fps", value="10"), "fps is '10'"),
    "info: fps infinite": (info("fps", value=float("inf")), "fps is inf"),
    "info: another fps": (info("fps", value=20), "observation.images.front"),
    "info: no episodes counted": (info("total_episodes", value=...), "total_episodes"),
    "info: episodes below 0": (info("total_episodes", value=-3), "total_episodes"),
    "info: one episode too few": (info("total_episodes", value=2), "counts 2 episodes"),
    "info: one episode too many": (info("total_episodes", value=4), "counts 4 episodes"),
    "info: 10^15 episodes": (info("total_episodes", value=10**15), "total_episodes"),
    "info: another count of frames": (info("total_frames", value=17), "17 frames"),
    "info: files that are missing": (info("wmpo", "files", value=[0, 1]), "counts 3 episodes"),
    "info: no files": (info("wmpo", "files", value=[]), "counts 3 episodes"),
    "info: a file twice": (info("wmpo", "files", value=[0, 0]), "out of order"),
    "info: files below 0": (info("wmpo", "files", value=[-1]), "out of order"),
    "info: files as text": (info("wmpo", "files", value="0"), "files"),
    "info: another version": (info("codebase_version", value="v9.9"), "v9.9"),
    "info: other folders": (info("chunks_size", value=10), "10 files"),
    "info: images of 0 pixels": (info("features", layout.video_key("front"), "shape", value=[0, 24, 3]), "0x24"),
    "info: images of 10^6 pixels": (
        info("features", layout.video_key("front"), "shape", value=[10**6, 24, 3]),
        "1000000x24",
    ),
    "info: grey images": (info("features", layout.video_key("front"), "shape", value=[16, 24, 1]), "3 channels"),
    "info: larger images": (info("features", layout.video_key("front"), "shape", value=[8192, 8192, 3]), "16x24"),
    "info: images turned": (info("features", layout.video_key("front"), "shape", value=[24, 16, 3]), "16x24"),
    # names and options that reach other programs
    "camera: a path upwards": (renamed("../../../outside"), "camera is called"),
    "camera: an absolute path": (renamed("/outside"), "camera is called"),
    "camera: a folder": (renamed("a/b"), "camera is called"),
    "camera: two dots": (renamed(".."), "camera is called"),
    "camera: empty": (renamed(""), "camera is called"),
    "camera: a line break": (renamed("a\nb"), "camera is called"),
    "camera: a zero": (renamed("a\0b"), "camera is called"),
    "camera: 5,000 letters": (renamed("a" * 5000), "camera is called"),
    "camera: another one": (renamed("left"), "observation.images.left"),
    "codec: null": (info("wmpo", "codec", value=None), "codec"),
    "codec: unknown": (info("wmpo", "codec", "name", value="mpeg2video"), "mpeg2video"),
    "codec: a file to write": (info("wmpo", "codec", "options", "stats", value="outside"), "libx264rgb"),
    "codec: options in an option": (info("wmpo", "codec", "options", "preset", value="x:stats=outside"), "preset"),
    "codec: a strength of words": (info("wmpo", "codec", "options", "qp", value="0:stats=outside"), "strength"),
    "codec: a strength of 5,000 digits": (info("wmpo", "codec", "options", "qp", value="9" * 5000), "strength"),
    "codec: options as a list": (info("wmpo", "codec", "options", value=["qp"]), "options"),
    "codec: other pixels": (info("wmpo", "codec", "pixels", value="yuv444p16"), "libx264rgb"),
    "codec: key frames null": (info("wmpo", "codec", "keyframe_interval", value=None), "keyframe_interval"),
    "codec: no key frames": (info("wmpo", "codec", "keyframe_interval", value=0), "Key frames"),
    # meta/tasks.parquet
    "tasks: missing": (lambda root: (root / layout.TASKS).unlink(), "tasks.parquet"),
    "tasks: cut short": (cut(layout.TASKS, 0.5), "tasks.parquet"),
    "tasks: a folder": (folder(layout.TASKS), "tasks.parquet"),
    "tasks: no sentences": (column(layout.TASKS, "__index_level_0__", None), "tasks.parquet"),
    "tasks: a gap": (column(layout.TASKS, "__index_level_0__", put(0, None)), "tasks.parquet"),
    "tasks: numbers as sentences": (column(layout.TASKS, "__index_level_0__", lambda v: pa.array([1, 2])), "tasks"),
    "tasks: one sentence twice": (column(layout.TASKS, "__index_level_0__", lambda v: [v[0]] * 2), "tasks.parquet"),
    "tasks: numbered anew": (column(layout.TASKS, "task_index", lambda v: v[::-1]), "tasks.parquet"),
    # meta/episodes
    "episodes: missing": (lambda root: (root / EPISODES).unlink(), "file-000.parquet is missing"),
    "episodes: cut short": (cut(EPISODES, 0.7), EPISODES),
    "episodes: empty": (rows(EPISODES, lambda table: table.slice(0, 0)), EPISODES),
    "episodes: a row is missing": (rows(EPISODES, lambda table: table.slice(0, 2)), "counts 3 episodes"),
    "episodes: a row twice": (rows(EPISODES, lambda t: pa.concat_tables([t, t.slice(2)])), "episode 3"),
    "episodes: swapped": (rows(EPISODES, lambda table: table.take([1, 0, 2])), "episode 0"),
    "episodes: numbers swapped": (column(EPISODES, "episode_index", swap), "episode 0"),
    "episodes: numbers doubled": (column(EPISODES, "episode_index", put(1, 0)), "episode 1"),
    "episodes: numbers as text": (column(EPISODES, "episode_index", lambda v: pa.array(list("012"))), "episode_index"),
    "episodes: a length of 0": (column(EPISODES, "length", put(1, 0)), "episode 1"),
    "episodes: a length below 0": (column(EPISODES, "length", put(1, -5)), "episode 1"),
    "episodes: a length of 10^12": (column(EPISODES, "length", put(1, 10**12)), "episode 1"),
    "episodes: length null": (column(EPISODES, "length", put(1, None)), "'length'"),
    "episodes: no length": (column(EPISODES, "length", None), "'length'"),
    "episodes: a wrong first frame": (column(EPISODES, "dataset_from_index", put(1, 7)), "frame 5"),
    "episodes: lengths twice": (rows(EPISODES, lambda t: t.append_column("length", t["length"])), "'length' 2 times"),
    "frames: actions twice": (rows(FRAMES, lambda t: t.append_column("action", t["action"])), "'action' 2 times"),
    "tasks: sentences twice": (
        rows(layout.TASKS, lambda t: t.append_column("task_index", t["task_index"])),
        "'task_index' 2 times",
    ),
    "episodes: no initial state": (column(EPISODES, "wmpo/start", None), "wmpo/start"),
    "episodes: initial state as text": (column(EPISODES, "wmpo/start", lambda v: pa.array(list("abc"))), "wmpo/start"),
    "episodes: success as text": (column(EPISODES, "wmpo/success", lambda v: pa.array(["yes"] * 3)), "wmpo/success"),
    "episodes: success null": (column(EPISODES, "wmpo/success", put(0, None)), "wmpo/success"),
    "episodes: success that no frame shows": (column(EPISODES, "wmpo/success", put(0, True)), "success"),
    "episodes: labels denied": (column(EPISODES, "wmpo/labelled", put(2, False)), "labels"),
    "episodes: source null": (column(EPISODES, "wmpo/source", put(0, None)), "wmpo/source"),
    "episodes: no sentence": (column(EPISODES, "tasks", put(1, [])), "'tasks'"),
    "episodes: sentence null": (column(EPISODES, "tasks", put(1, [None])), "'tasks'"),
    "episodes: facts that are none": (column(EPISODES, "wmpo/meta", put(1, "{")), "wmpo/meta"),
    "episodes: facts as a list": (column(EPISODES, "wmpo/meta", put(1, "[1]")), "wmpo/meta"),
    "episodes: deeply nested facts": (column(EPISODES, "wmpo/meta", put(1, "[" * 100_000)), "wmpo/meta"),
    # data
    "frames: missing": (lambda root: (root / FRAMES).unlink(), FRAMES),
    "frames: cut short": (cut(FRAMES, 0.7), FRAMES),
    "frames: no parquet": (replaced(FRAMES, b"PAR1" + bytes(100) + b"PAR1"), FRAMES),
    "frames: a folder": (folder(FRAMES), FRAMES),
    "frames: a row is missing": (rows(FRAMES, lambda table: table.slice(0, 17)), "17 rows in place of 18"),
    "frames: a row too many": (rows(FRAMES, lambda t: pa.concat_tables([t, t.slice(17)])), "19 rows"),
    "frames: rows in another order": (rows(FRAMES, lambda t: t.take([1, 0, *range(2, 18)])), "frame_index"),
    "frames: episodes swapped": (column(FRAMES, "episode_index", swap), "episode_index"),
    "frames: episodes doubled": (column(FRAMES, "episode_index", lambda v: [0] * 18), "episode_index"),
    "frames: no episode_index": (column(FRAMES, "episode_index", None), "episode_index"),
    "frames: another fps": (column(FRAMES, "timestamp", lambda v: [2 * t for t in v]), "timestamp"),
    "frames: times that are none": (column(FRAMES, "timestamp", put(3, float("nan"))), "timestamp"),
    "frames: NaN actions": (column(FRAMES, "action", part(3, float("nan"))), "NaN .* 'action', first in row 3"),
    "frames: infinite actions": (column(FRAMES, "action", part(0, float("inf"))), "infinite .* 'action'"),
    "frames: NaN labels": (column(FRAMES, layout.LABEL, part(13, float("nan"))), "'label.action'"),
    "frames: NaN states": (column(FRAMES, layout.STATE, part(17, float("nan"))), "'observation.state'"),
    "frames: action null": (column(FRAMES, "action", put(4, None)), "'action'"),
    "frames: part of an action null": (column(FRAMES, "action", part(4, None)), "'action'"),  # type: ignore[arg-type]
    "frames: no actions": (column(FRAMES, "action", None), "'action'"),
    "frames: no states": (column(FRAMES, layout.STATE, None), "'observation.state'"),
    "frames: actions as text": (column(FRAMES, "action", lambda v: pa.array([list("abc")] * 18)), "'action'"),
    "frames: actions of 2 dimensions": (column(FRAMES, "action", lambda v: pa.array([a[:2] for a in v])), "'action'"),
    "frames: actions of any length": (
        column(FRAMES, "action", lambda v: pa.array([a[: 1 + n % 3] for n, a in enumerate(v)])),
        "'action'",
    ),
    "frames: actions without dimensions": (column(FRAMES, "action", lambda v: pa.array([a[0] for a in v])), "'action'"),
    "frames: all labels times 1000": (column(FRAMES, layout.LABEL, lambda v: (1000 * np.array(v)).tolist()), "labels"),
    "frames: success as text": (column(FRAMES, "success", lambda v: pa.array(["True"] * 18)), "'success'"),
    "frames: success as numbers": (column(FRAMES, "success", lambda v: pa.array([1.5] * 18)), "'success'"),
    "frames: success null": (column(FRAMES, "success", put(2, None)), "'success'"),
    "frames: no success": (column(FRAMES, "success", None), "'success'"),
    "frames: success turned round": (column(FRAMES, "success", lambda v: [not x for x in v]), "success by episode"),
    # videos
    "video: missing": (lambda root: (root / FRONT).unlink(), FRONT),
    "video: a third of it": (cut(FRONT, 0.3), FRONT),
    "video: all but the end": (cut(FRONT, 0.95), FRONT),
    "video: empty": (replaced(FRONT, b""), FRONT),
    "video: no video": (replaced(FRONT, "hello" * 100), FRONT),
    "video: a folder": (folder(FRONT), FRONT),
    "video: a list of other files": (playlist, f"{FRONT} is damaged"),
    "video: shorter": (video(frames=17), "17 frames .* 18"),
    "video: longer": (video(frames=19), "19 frames .* 18"),
    "video: slower": (video(fps=5), "at another time"),
    "video: of another size": (video(size=(24, 16)), "24x16 .* 16x24"),
}


def read_all(root: Path) -> None:
    """All that learning reads."""
    store = EpisodeStore.open(root)
    FrameCache(store)
    assert len(list(store)) == 3
    store.episode(1)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_there_are_enough() -> None:
    assert len(DAMAGES) >= 120


def test_the_whole_store_is_read(whole: Path) -> None:
    read_all(whole)


def test_labels_in_other_units_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    root = tmp_path / "store"
    EpisodeStore.create(root, SPEC).append([make_episode(0, 15), *(make_episode(n, 15, labels=True) for n in range(7))])
    FrameCache(EpisodeStore.open(root))
    column(FRAMES, layout.LABEL, lambda v: [[1000 * x for x in a] if n >= 16 else a for n, a in enumerate(v)])(root)
    with pytest.raises(UserError, match=f"{FRAMES}.* labels in other units"):
        list(EpisodeStore.open(root))


def test_a_short_episode_that_means_one_thing_is_no_damage(tmp_path: Path) -> None:
    """What an expert meant hardly varies in it; what was done, with noise, does."""
    episode = make_episode(0, 4)
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, episode.actions.shape).astype(np.float32)
    meant = np.linspace(0.9, 0.9001, 4, dtype=np.float32)[:, None].repeat(3, 1)
    store = EpisodeStore.create(tmp_path, SPEC)
    store.append([dataclasses.replace(episode, actions=meant + noise, labels=meant)])
    assert len(list(EpisodeStore.open(tmp_path))) == 1


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, words = DAMAGES[name]
    root = tmp_path / "store"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("cache", ".lock"))
    damage(root)
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    before = snapshot(root)
    with pytest.raises(UserError, match=words) as caught:
        read_all(root)
    message = str(caught.value)
    assert str(root) in message and "\n" not in message and len(message) < 600 + len(str(root))
    assert snapshot(root) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "cache"}


def test_tables_that_others_have_written(whole: Path, tmp_path: Path) -> None:
    """Lists of any length in place of vectors, doubles, a named index: LeRobot's own tools write these."""
    root = tmp_path / "store"
    shutil.copytree(whole, root)
    kept = list(EpisodeStore.open(root))
    column(FRAMES, "action", lambda v: pa.array(v, pa.list_(pa.float64())))(root)
    column(EPISODES, "wmpo/source", lambda v: pa.array(v, pa.large_string()))(root)
    rows(layout.TASKS, lambda table: table.rename_columns(["task_index", "task"]))(root)
    for one, other in zip(EpisodeStore.open(root), kept, strict=True):
        assert np.array_equal(one.actions, other.actions) and one.source == other.source
    EpisodeStore.open(root).append([make_episode(7, 3)])
    assert len(EpisodeStore.open(root)) == 4


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_data_sets_of_others_are_recognised(version: str, whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(whole, root)
    info("wmpo", value=...)(root)
    info("codebase_version", value=version)(root)
    with pytest.raises(UserError, match=r"that LeRobot's tools have edited since.*`wmpo data import"):
        EpisodeStore.open(root)
    info("features", "label.action", value=...)(root)
    with pytest.raises(UserError, match=rf"is a LeRobot data set \({version}\) that wmpo has not written"):
        EpisodeStore.open(root)


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A folder, and rights that end where those of files do: root may read and write everything."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    user = os.geteuid()
    try:
        yield place
    finally:
        os.seteuid(user)
        shutil.rmtree(place)


def drop_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.parametrize("file", [layout.INFO, layout.TASKS, FRAMES, EPISODES, FRONT])
def test_unreadable_files(file: str, whole: Path, ordinary_user: Path) -> None:
    root = ordinary_user / "store"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("cache"))
    root.chmod(0o777)
    (root / file).chmod(0)
    drop_rights()
    with pytest.raises(UserError, match=rf"{file} can't be read"):
        read_all(root)


def test_a_store_on_a_read_only_disk(whole: Path, ordinary_user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is learned from, with its cache in the user's own folder; nothing is written to it."""
    root = ordinary_user / "store"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("cache", ".lock"))
    root.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(ordinary_user / "home"))
    before = snapshot(root)
    drop_rights()
    caches = [FrameCache(EpisodeStore.open(root)) for _ in range(2)]
    assert caches[0].folder.parent == ordinary_user / "home" / "wmpo"
    assert np.array_equal(caches[1].images["front"][:5, 0, 0, 0], np.zeros(5))
    last = EpisodeStore.open(root).episode(2).images["front"][-1]
    assert np.array_equal(caches[1].images["front"][-1], last.transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"could not be written to .*store .*Permission denied"):
        EpisodeStore.open(root).append([make_episode(7, 3)])
    assert snapshot(root) == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "nowhere"))
    with pytest.raises(UserError, match="name a folder in WMPO_CACHE"):
        FrameCache(EpisodeStore.open(root))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks(code: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are then held on this machine's own disk: one writer still waits for the other."""
    root = tmp_path / "store"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("cache"))
    flock = fcntl.flock

    def unsupported(file: IO[str], mode: int) -> None:
        if str(root) in file.name:
            raise OSError(code, os.strerror(code))
        flock(file, mode)

    monkeypatch.setattr(fcntl, "flock", unsupported)
    store = EpisodeStore.open(root)
    store.append([make_episode(7, 3)])
    assert len(FrameCache(store)) == 4
    with file_lock(root / ".lock"), pytest.raises(BlockingIOError), file_lock(root / ".lock", wait=False):
        pass


def test_a_disk_too_small_for_the_frames(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"need .* GB, but .* left: make room"):
        FrameCache(EpisodeStore.open(whole))
    assert not list(tmp_path.rglob("*.rgb"))


def test_what_is_no_store(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none", "There is no episode store"),
        (tmp_path / ("a" * 300), "can't be opened"),
        (tmp_path / "\udcff", "There is no episode store"),
    ):
        with pytest.raises(UserError, match=words):
            EpisodeStore.open(path)
    with pytest.raises(UserError, match="at least one camera"):
        EpisodeStore.create(tmp_path, dataclasses.replace(SPEC, cameras={}))
    with pytest.raises(UserError, match="camera is called"):
        EpisodeStore.create(tmp_path, dataclasses.replace(SPEC, cameras={"../a": (8, 8)}))
    with pytest.raises(UserError, match="even sides"):
        EpisodeStore.create(tmp_path, dataclasses.replace(SPEC, cameras={"a": (9, 8)}), lossy())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="No episode store can be made"):
        EpisodeStore.create(tmp_path / "file" / "store", SPEC)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"initial_state": 2**63}, "initial state"),
        ({"initial_state": "7"}, "initial state"),
        ({"instruction": "push \udcff"}, "UTF-8"),
        ({"instruction": None}, "instruction"),
        ({"meta": {"a": 1}}, "meta"),
        ({"source": 3}, "source"),
    ],
)
def test_episodes_that_can_not_be_stored(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path, SPEC)
    with pytest.raises(UserError, match=words):
        store.append([dataclasses.replace(make_episode(0, 3), **change)])
    assert len(EpisodeStore.open(tmp_path)) == 0


def test_memory_of_decoding_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "BLOCK_BYTES", 2 * 3 * 16 * 24)
    store = EpisodeStore.create(tmp_path, SPEC)
    store.append([make_episode(0, 4)])
    assert [len(block) for block in store.video(0, "front").blocks()] == [2, 2, 1]


@dataclasses.dataclass(frozen=True)
class Threshold:
    value: float


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "null", "1" + "0" * 400, '"0.5"', "true"])
def test_numbers_of_settings_are_finite(text: str) -> None:
    with pytest.raises(UserError, match=r"here: value is .*; it must be a"):
        from_plain(Threshold, {"value": json.loads(text)}, "here")


def test_null_is_nan_where_results_say_so() -> None:
    assert np.isnan(from_plain(Threshold, {"value": None}, "here", null_is_nan=True).value)
    with pytest.raises(UserError, match="finite"):
        from_plain(Threshold, {"value": float("inf")}, "here", null_is_nan=True)
