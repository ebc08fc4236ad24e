"""Data sets of others: what is found in them, what becomes of them, and what is refused in one sentence."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from episodes_by_hand import SPEC, make_episode, make_store
from recordings import LENGTHS, SENTENCES, Recording, film, grey, record, record_hdf5, state_of
from wmpo.cli import main
from wmpo.data.plain import export_plain
from wmpo.data.store import EpisodeStore
from wmpo.data.video import LOSSLESS
from wmpo.errors import UserError
from wmpo.importing import store as store_module
from wmpo.importing.conversion import Choices, Plan, plan_import
from wmpo.importing.description import advice, describe
from wmpo.importing.opening import open_source
from wmpo.importing.pictures import picture
from wmpo.importing.store import import_store
from wmpo.importing.success import Verdict, by_rule, relabel

ODD = Recording(
    version="v2.1", codec="", fps=50, state="observation.joints", action="action.joints", size=1, dtype="float64",
    cameras=(("observation.image", (33, 21)),),
)  # fmt: skip
RECORDINGS = {
    "v3": Recording(), "v3-one-file": Recording(per_file=9), "v3-av1": Recording(codec="libsvtav1"),
    "v3-images": Recording(codec=""), "v2.1": Recording(version="v2.1"), "v2.1-images-odd": ODD,
}  # fmt: skip


class Silent:
    def __init__(self) -> None:
        self.skipped = self.done = 0

    def skip(self, done: int) -> None:
        self.skipped = done

    def update(self, advance: int = 1) -> None:
        self.done += advance


def planned(path: Path, **choices: Any) -> Plan:
    return plan_import(open_source(path), Choices(**choices))


def made(path: Path, out: Path, **choices: Any) -> EpisodeStore:
    return import_store(planned(path, **choices), out, LOSSLESS, Silent())


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_layout_becomes_the_same_store(name: str, tmp_path: Path) -> None:
    r = RECORDINGS[name]
    root = record(tmp_path / "theirs", r)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    text = "\n".join(describe(open_source(root)))
    assert f"LeRobot {r.version}" in text and "3 of 22 frames" in text and SENTENCES[2] in text
    assert not r.codec or f"is video: {'av1' if 'av1' in r.codec else 'h264'}." in text
    store = made(root, tmp_path / "ours", state=(r.state,), action=(r.action,))
    assert store.spec.fps == r.fps and list(store.spec.cameras.values()) == [size for _, size in r.cameras]
    for e, episode in enumerate(store):
        frames = LENGTHS[e]
        assert (episode.length, episode.instruction, episode.source) == (frames - 1, SENTENCES[e], "expert")
        assert np.allclose(episode.state, [state_of(e, frame, r.size) for frame in range(frames)])
        assert np.allclose(episode.actions, [state_of(e, frame + 1, r.size) for frame in range(frames - 1)])
        for images in episode.images.values():
            greys = [grey(e, frame) for frame in range(frames)]
            assert np.abs(images.astype(int) - np.reshape(greys, (-1, 1, 1, 1))).max() <= 2  # frames differ by 5
    assert all(row.unlabelled and row.initial_state == -1 for row in store.records())
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_pictures_that_are_none_are_told_before_the_first_episode_is_stored(tmp_path: Path) -> None:
    root = record(tmp_path / "theirs", Recording(codec=""))
    column("data/chunk-000/file-001.parquet", "observation.images.wrist", lambda v: [b"png"] * len(v))(root)
    source = open_source(root)
    for work in (lambda: describe(source), lambda: made(root, tmp_path / "ours")):
        with pytest.raises(UserError, match=r"file-001.parquet has binary in the column '.*wrist' in place of images"):
            work()
    assert len(made(root, tmp_path / "ours", cameras=("front",))) == 3
    pytest.importorskip("h5py")
    path = record_hdf5(tmp_path / "demo.hdf5")
    import h5py

    with h5py.File(path, "r+") as file:
        pictures = file["data/demo_2/obs/agentview_image"][:]
        del file["data/demo_2/obs/agentview_image"]
        file["data/demo_2/obs/agentview_image"] = pictures[:, :5]
    with pytest.raises(UserError, match=r"shows \(5, 32, 3\) uint8 in 'agentview_image' of data/demo_2"):
        describe(open_source(path))


def test_pictures_as_others_encode_them(tmp_path: Path) -> None:
    shown = np.zeros((48, 64, 3), np.uint8)
    shown[:24, :, 0] = 200

    def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **more)
        return file.getvalue()

    sideways = Image.Exif()
    sideways[0x0112] = 6  # as LeRobot's reader takes it, too
    turned = np.ascontiguousarray(np.rot90(shown))
    for content in (encoded(Image.fromarray(np.dstack([shown, shown[..., 0]]))),  # with an alpha channel
                    encoded(Image.fromarray(shown).quantize()), encoded(Image.fromarray(shown), "WEBP", lossless=True),
                    encoded(Image.fromarray(turned), "JPEG", exif=sideways, quality=100, subsampling=0)):  # fmt: skip
        assert np.abs(picture(content, (48, 64), tmp_path, 0).astype(int) - shown).max() <= 4
    depth = encoded(Image.fromarray(shown[..., 0].astype(np.uint16) * 256))
    for content, words in ((depth, "more than 8 bits a colour in row 7"), (encoded(Image.fromarray(turned)), "64x48")):
        with pytest.raises(UserError, match=words):
            picture(content, (48, 64), tmp_path, 7)


def test_fewer_frames_smaller_pictures_other_names(tmp_path: Path) -> None:
    root = record(tmp_path / "theirs", Recording(codec="", success=True))
    names = ("wrist=hand", "front")
    store = made(root, tmp_path / "ours", cameras=names, image_size=(24, 32), fps=10, rollouts_of="act")
    assert list(store.spec.cameras.items()) == [("hand", (24, 32)), ("front", (24, 32))] and store.spec.fps == 10
    episode = store.episode(2)  # 7 frames; the last one is kept, and every third before it
    assert episode.images["hand"][:, 0, 0, 0].tolist() == [grey(2, frame) for frame in (0, 3, 6)]
    assert np.allclose(episode.actions, [state_of(2, frame, 6) for frame in (3, 6)])  # of targets the last one
    assert episode.success.tolist() == [False, False, True] and not store.episode(1).succeeded
    assert episode.source == "act"
    changes = planned(root, fps=10, action_space="delta", except_dims=(5,)).episode(2).actions
    targets = np.array([state_of(2, frame + 1, 6) for frame in range(6)])
    assert np.allclose(changes[:, :5], targets.reshape(2, 3, 6).sum(1)[:, :5])
    assert np.allclose(changes[:, 5], targets[[2, 5], 5])
    means = planned(root, fps=10, action_space="delta", except_dims=(5,), merge_deltas="mean").episode(2).actions
    assert np.allclose(means[:, :5], changes[:, :5] / 3) and np.array_equal(means[:, 5], changes[:, 5])
    with pytest.raises(UserError, match=r"--fps 12 does not divide the recorded 30: choose one of 30, 15, 10"):
        planned(root, fps=12)
    with pytest.raises(UserError, match="--instruction is blank"):
        planned(root, instruction=" ")


def test_robomimic(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = record_hdf5(tmp_path / "demo.hdf5")
    episode = planned(path, success="rewards").episode(1)
    assert episode.length == LENGTHS[1] - 1 and episode.state.shape == (LENGTHS[1], 9)
    assert not episode.succeeded and planned(path, success="rewards").episode(0).success.tolist()[-2:] == [False, True]
    after = planned(record_hdf5(tmp_path / "after.hdf5", after=True), success="rewards", fps=10).episode(0)
    assert after.images["agentview"][:, 0, 0, 0].tolist() == [grey(0, frame) for frame in (0, 2, 4, 6)]
    assert np.allclose(after.actions[:, 0], 0.02) and after.actions[:, 6].tolist() == [
        0,
        2,
        4,
    ]  # the gripper's a target
    assert after.success.tolist() == [False, False, False, True] and after.instruction == "Square_D0"
    assert np.allclose(after.state[:, 0], [0, 2, 4, 6])
    assert "HDF5" in "\n".join(describe(open_source(path)) + advice(open_source(path).facts))
    whole = path.read_bytes()
    for begin in (b"", whole[: len(whole) // 2]):
        (tmp_path / "cut.hdf5").write_bytes(begin)
        with pytest.raises(UserError, match=r"cut\.hdf5 is damaged or truncated"):
            open_source(tmp_path / "cut.hdf5")


def test_hdf5_that_is_damaged_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Anywhere: the libraries complain in a dozen ways."""
    h5py = pytest.importorskip("h5py")
    whole, rng = record_hdf5(tmp_path / "whole.hdf5").read_bytes(), np.random.default_rng(0)
    told = 0
    for _ in range(12):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 20):
            content[place] = rng.integers(256)
        (tmp_path / "x.hdf5").write_bytes(bytes(content))
        status, complaint = main(["data", "check", str(tmp_path / "x.hdf5")]), capsys.readouterr().err
        assert (status, complaint.count("\n")) in ((0, 0), (2, 1))
        told += "x.hdf5 is damaged or truncated" in complaint
    assert told > 2
    for name, values, words in (
        (
            "data/demo_1/actions",
            np.array([b"a"] * LENGTHS[1]),
            r"has \|S1 in place of numbers in 'actions' of data/demo_1",
        ),
        ("data/demo_1/actions", np.zeros((LENGTHS[1], 7), complex), "has complex128 in place of numbers"),
        ("data/demo_0/rewards", np.array([b"a"] * LENGTHS[0]), r"has \|S1 in place of numbers in 'rewards'"),
        ("data/demo_" + "9" * 5000, "demo_0", ""),
    ):
        (tmp_path / "x.hdf5").write_bytes(whole)
        with h5py.File(tmp_path / "x.hdf5", "r+") as file:
            if name in file:
                del file[name]
            file[name] = file["data/demo_0"] if isinstance(values, str) else values
        if not words:
            assert len(open_source(tmp_path / "x.hdf5").facts.episodes) == 3
            continue
        with pytest.raises(UserError, match=words):
            describe(open_source(tmp_path / "x.hdf5"))


def test_a_sentence_that_is_no_text_is_told_before_the_first_episode(tmp_path: Path) -> None:
    root = record(tmp_path / "theirs", Recording(version="v2.1", codec=""))
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"tasks": ["', '"tasks": ["\\ud800')
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"theirs: a sentence of episode 2 is no text in UTF-8"):
        open_source(root)


def test_names_that_command_a_terminal_are_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = record(tmp_path / "theirs", Recording(codec="", action="act\x1b[2Jion\n"))
    assert main(["data", "check", str(root)]) == 0
    text = capsys.readouterr().out
    assert "act\\x1b[2Jion\\n, 6: " in text and "\x1b" not in text
    store = make_store(tmp_path / "store", [replace(make_episode(0, 3), source="\x1b[2J")])
    assert store.summary().lines() == ["1 episodes of \\x1b[2J, 0.0% successful"]


def test_an_import_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = record(tmp_path / "theirs", Recording(codec="")), tmp_path / "ours"
    whole, append = Plan.episode, EpisodeStore.append

    def stopped(plan: Plan, number: int, in_place: Any = ()) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return whole(plan, number, in_place)

    monkeypatch.setattr(Plan, "episode", stopped)
    with pytest.raises(KeyboardInterrupt):
        made(root, out)
    assert not out.exists()
    monkeypatch.setattr(Plan, "episode", whole)
    progress = Silent()
    store = import_store(planned(root), out, LOSSLESS, progress)
    assert (progress.skipped, progress.done, len(store)) == (2, 1, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "ours"}
    monkeypatch.setattr(EpisodeStore, "append", None)  # nothing is done twice
    assert len(made(root, out)) == 3
    monkeypatch.setattr(EpisodeStore, "append", append)
    about = json.loads((out / "import.json").read_text())
    del about["choices"]["merge_deltas"]  # as before there was such a choice
    (out / "import.json").write_text(json.dumps(about))
    assert len(made(root, out)) == 3
    for choices, place, words in ({"fps": 10}, out, "is there already"), ({}, root / "in", "lies in the data set"):
        with pytest.raises(UserError, match=words):
            made(root, place, **choices)


def test_two_imports_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused while the first is at work; where that ends meanwhile, both have the same store."""
    root, out = record(tmp_path / "theirs", Recording(codec="")), tmp_path / "ours"
    whole, check, told = Plan.episode, Plan.check, list[object]()

    def busy(plan: Plan, number: int, in_place: Any = ()) -> Any:
        if not told:
            with pytest.raises(UserError, match=r"Another process is at work in .*ours") as refusal:
                made(root, out)
            told.append(refusal)
        return whole(plan, number, in_place)

    monkeypatch.setattr(Plan, "episode", busy)
    assert len(made(root, out)) == 3 and told
    shutil.rmtree(out)

    def late(plan: Plan) -> None:
        monkeypatch.setattr(Plan, "check", check)
        made(root, out)

    monkeypatch.setattr(Plan, "check", late)
    assert len(made(root, out)) == 3
    shutil.rmtree(out)
    alone = store_module._alone

    @contextmanager
    def between(lock: Path, out: Path) -> Iterator[None]:
        monkeypatch.setattr(store_module, "_alone", alone)
        shutil.rmtree(lock.parent)  # the first has put it in its place, the lock that both have opened with it
        made(root, out)
        yield

    monkeypatch.setattr(store_module, "_alone", between)
    assert len(made(root, out)) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "ours"}


def test_labels_after_the_fact(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [make_episode(n, 4 + n, success=(2,)) for n in range(2)])
    store.append([make_episode(2, 6)])
    (tmp_path / "labels.csv").write_text("episode_index,success,frame\n0,0,\n2,yes,4\n")
    relabel(store, by_rule(str(tmp_path / "labels.csv"), 3))
    again = EpisodeStore.open(store.root)
    assert [row.succeeded for row in again.records()] == [False, True, True]
    assert again.episode(2).success.tolist() == [False] * 4 + [True] * 3
    assert again.episode(1).success.tolist() == make_episode(1, 5, success=(2,)).success.tolist()
    table = pq.read_table(sorted((store.root / "data").rglob("*.parquet"))[-1])
    assert table["next.reward"].to_pylist() == [0, 0, 0, 1, 1, 1, 0]
    assert np.array_equal(again.episode(2).images["front"], make_episode(2, 6).images["front"])
    assert len(list((store.root / "data").rglob("*.parquet"))) == 2
    again.append([make_episode(3, 3)])
    before = [path.read_bytes() for path in sorted(store.root.rglob("*.parquet"))]
    with pytest.raises(UserError, match="Episode 3 succeeds from frame 9 on, but has frames 0 to 3"):
        relabel(again, {0: Verdict(True), 3: Verdict(True, 9)})
    assert before == [path.read_bytes() for path in sorted(store.root.rglob("*.parquet"))]
    for text, words in (
        ("0,1\n", "holds no labels"), ("episode_index,success\n0,maybe\n", "line 2"),
        ("episode_index,success\n0,1\n0,1\n", "episode 0 is named twice"),
        ("episode_index,success\n7,1\n", "but there are 3"), ("episode_index,success,frame\n0,0,3\n", "line 2: frame"),
    ):  # fmt: skip
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            by_rule(str(tmp_path / "labels.csv"), 3)


def test_what_was_exported_keeps_its_successes(tmp_path: Path) -> None:
    """The frame that shows it, the last one, has no row there."""
    store = make_store(tmp_path / "store", [make_episode(0, 5, (5,)), make_episode(1, 4)])
    export_plain(store, [0, 1], tmp_path / "plain")
    again = made(tmp_path / "plain", tmp_path / "again")
    assert [row.succeeded for row in again.records()] == [True, False]


def test_a_store_that_lerobot_has_edited(tmp_path: Path) -> None:
    """Its tools drop our key, and the columns of episodes that they don't know."""
    theirs = make_store(tmp_path / "store", [make_episode(0, 5, (3,), labels=True), make_episode(1, 4)]).root
    whole = made(theirs, tmp_path / "again").episode(0)
    assert (whole.initial_state, whole.source) == (make_episode(0, 5).initial_state, "policy")
    kept = json.loads((theirs / "meta/info.json").read_text())
    info = {name: value for name, value in kept.items() if name != "wmpo"}
    (theirs / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"LeRobot's tools have edited since.*wmpo data import"):
        EpisodeStore.open(theirs)
    for path in theirs.glob("meta/episodes/*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop([name for name in table.column_names if name.startswith("wmpo/")]), path)
    (theirs / "meta/info.json").write_text(json.dumps(kept))  # as one might try to mend it
    with pytest.raises(UserError, match=r"LeRobot's tools have edited since"):
        EpisodeStore.open(theirs)
    episode = made(theirs, tmp_path / "ours").episode(0)
    first = make_episode(0, 5, (3,), labels=True)
    assert episode.labels is not None and np.array_equal(episode.labels, first.labels)  # type: ignore[arg-type]
    assert np.array_equal(episode.actions, first.actions) and np.array_equal(episode.success, first.success)
    assert np.array_equal(episode.images["wrist"], first.images["wrist"])


Damage = Callable[[Path], object]
INFO, DATA, META = "meta/info.json", "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.front/chunk-000/file-001.mp4"


def info(**changes: Any) -> Damage:
    return lambda root: (root / INFO).write_text(json.dumps(json.loads((root / INFO).read_text()) | changes))


def feature(key: str, **changes: Any) -> Damage:
    def damage(root: Path) -> None:
        content = json.loads((root / INFO).read_text())
        content["features"].setdefault(key, {}).update(changes)
        (root / INFO).write_text(json.dumps(content))

    return damage


def column(file: str, name: str, change: Callable[[list[Any]], list[Any]] | None) -> Damage:
    def damage(root: Path) -> None:
        table = pq.read_table(root / file, partitioning=None)
        place = table.column_names.index(name)
        values = None if change is None else pa.array(change(table[name].to_pylist()))
        table = table.remove_column(place) if values is None else table.set_column(place, name, values)
        pq.write_table(table, root / file)

    return damage


def twice(file: str, name: str) -> Damage:
    def damage(root: Path) -> None:
        table = pq.read_table(root / file, partitioning=None)
        pq.write_table(table.append_column(name, table[name]), root / file)

    return damage


def cut(file: str) -> Damage:
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[:300])


def linked(root: Path) -> None:
    (root / DATA).rename(root.parent / "outside.parquet")
    (root / DATA).symlink_to(root.parent / "outside.parquet")


def turned(root: Path) -> None:
    """By the matrix in the header of its track."""
    content = bytearray((root / VIDEO).read_bytes())
    begin = content.find(b"tkhd") + 44
    content[begin : begin + 36] = struct.pack(">9i", -65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30)
    (root / VIDEO).write_bytes(bytes(content))


SHAPE = {"dtype": "video", "names": ["height", "width", "channels"]}
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no info": (lambda root: (root / INFO).unlink(), "holds no episodes that wmpo can read"),
    "info is a list": (lambda root: (root / INFO).write_text("[]"), "info.json describes no features"),
    "info is cut": (cut(INFO), "info.json is damaged or incomplete"),
    "version": (info(codebase_version="v1.6"), "is of LeRobot's format v1.6: wmpo reads"),
    "fps": (info(fps="fast"), "info.json has 'fast' as its fps"),
    "fps nan": (info(fps=float("nan")), "info.json has nan as its fps"),
    "another rate": (info(fps=10), "file-000.mp4 has 30 frames a second where its data set says 10"),
    "counts": (info(total_frames=99), "counts 3 episodes of 99 frames where there are 3 of 22"),
    "path leads out": (info(data_path="../{chunk_index:03d}/{file_index}"), "names a file outside of itself"),
    "path reads an attribute": (info(data_path="{chunk_index.__class__}"), "as its data_path, which wmpo can't fill"),
    "path is huge": (info(data_path="{chunk_index:0999999999d}"), "which wmpo can't fill"),
    "path is no text": (info(video_path=7), "as its video_path, which wmpo can't fill"),
    "path with a zero": (info(data_path="\0{file_index}"), "names a file outside of itself"),
    "link": (linked, "names a file outside of itself.*cp -rL"),
    "camera name": (feature("observation.images.../../x", **SHAPE, shape=[48, 64, 3]), "lacks the column"),
    "huge picture": (feature("observation.images.front", shape=[10**9, 10**9, 3]), "48x64 pixels where .*says"),
    "other picture": (feature("observation.images.front", shape=[64, 48, 3]), "shows 48x64 pixels where"),
    "no shape": (feature("observation.images.front", shape="big"), "gives no shape of three whole numbers"),
    "no colours": (feature("observation.images.front", dtype=3), "does not say what the feature"),
    "dimensions": (feature("action", shape=[7]), "has 6 numbers a row in 'action' in place of 7"),
    "huge action": (feature("action", shape=[10**9]), "'action' has 1000000000 dimensions"),
    "no data": (lambda root: (root / DATA).unlink(), "file-000.parquet is missing"),
    "data cut": (cut(DATA), "data/chunk-000/file-000.parquet is damaged or truncated"),
    "episodes cut": (cut(META), "episodes/chunk-000/file-000.parquet is damaged or truncated"),
    "no episodes": (lambda root: shutil.rmtree(root / "meta/episodes"), "has no tables of episodes"),
    "no video": (lambda root: (root / VIDEO).unlink(), "front/chunk-000/file-001.mp4 is missing"),
    "video cut": (cut(VIDEO), "front/chunk-000/file-001.mp4 is damaged or truncated"),
    "video short": (lambda root: film(root / VIDEO, [9] * 4, (48, 64), 30, "libx264"), r"ends before 0\.200 s"),
    "video small": (lambda root: film(root / VIDEO, [9] * 7, (32, 32), 30, "libx264"), "shows 32x32 pixels in place"),
    "video slow": (lambda root: film(root / VIDEO, [9] * 7, (48, 64), 15, "libx264"), "shows no frame at 0.033 s"),
    "video turned": (turned, r"is to be turned by -?180 degrees: encode it upright"),
    "playlist": (lambda root: (root / VIDEO).write_text("ffconcat version 1.0\nfile x\n"), "damaged or truncated"),
    "nan": (column(DATA, "action", lambda v: [[float("nan")] * 6, *v[1:]]), "NaN or infinite numbers in .*'action'"),
    "too large": (column(DATA, "action", lambda v: [[1e300] * 6, *v[1:]]), "NaN or infinite numbers"),
    "null": (column(DATA, "action", lambda v: [None, *v[1:]]), "in the column 'action'"),
    "text": (column(DATA, "action", lambda v: ["x"] * len(v)), "has string in the column 'action'"),
    "uneven": (column(DATA, "action", lambda v: [[1.0], *v[1:]]), "lists of different lengths"),
    "no column": (column(DATA, "action", None), "lacks the column 'action'"),
    "a column twice": (twice(DATA, "action"), "file-000.parquet has the column 'action' 2 times"),
    "a column of episodes twice": (twice(META, "length"), "file-000.parquet has the column 'length' 2 times"),
    "version with a line end": (info(codebase_version="v1\nx\x1b[2J"), r"format v1\\nx\\x1b\[2J: wmpo reads"),
    "fps of 10,000 letters": (info(fps="x" * 10_000), r"^.{,4100}restore it from a copy"),
    "gap of frames": (column(DATA, "frame_index", lambda v: [0, *range(2, len(v) + 1)]), "of the column 'frame_index'"),
    "gap of episodes": (column(META, "episode_index", lambda v: [0, 2, 3]), "has the episode_index 2 where 1 is due"),
    "times": (column(DATA, "timestamp", lambda v: [3 * t for t in v]), "of the column 'timestamp' in place"),
    "length": (column(META, "length", lambda v: [6, 9, 10**12]), "counts 3 episodes"),
    "negative length": (column(META, "length", lambda v: [6, -9, 7]), "that its length is -9"),
    "file number": (column(META, "data/file_index", lambda v: [-1, 0, 0]), "does not say in which file"),
    "begin": (column(META, "videos/observation.images.front/from_timestamp", lambda v: [0.0, float("nan"), 0.0]),
              "no time at which the video"),
    "tasks": (column(META, "tasks", lambda v: [[1], [2], [3]]), "something else than sentences"),
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("theirs") / "data", Recording())


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_told_in_one_sentence(
    name: str, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    root = shutil.copytree(theirs, tmp_path / "data")
    damage, words = DAMAGES[name]
    damage(root)
    assert main(["data", "import", str(root), str(tmp_path / "out")]) == 2
    complaint = capsys.readouterr().err
    assert re.search(words, complaint) and complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()
    if name != "video slow":  # which only decoding tells
        assert not list(tmp_path.glob(".out*"))  # told before the first episode was stored
        assert main(["data", "check", str(root)]) == 2 and re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--cameras frnt", "There is no camera 'frnt': did you mean front?"),
        ("--cameras front=a wrist=a", "--cameras names a twice"),
        ("--cameras front=../x", "a camera is called '../x'"),
        ("--state typo", "There is no column for the state 'typo'"),
        ("--success reward", "There is no column 'reward' of single numbers"),
        ("--success nowhere.csv", "nowhere.csv can't be read"),
        ("--except-dims 6", "--except-dims names dimension 6: the action has 0 to 5"),
        ("--image-size 0 5", "0x5 pixels"),
        ("--horizon 3", "--horizon is 3, but there are episodes of 8 actions"),
        ("--rollouts-of expert", "leave it out for demonstrations"),
        ("--success-frames 0", "--success-frames is 0"),
        ("--success-frames 9999999", "it must be at most 1000000"),
        ("--image-size 33 21 --codec lossy", "wmpo: Ordinary H.264 takes pictures of even sides"),
    ],
)
def test_choices_that_do_not_fit(
    options: str, words: str, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "import", str(theirs), str(tmp_path / "out"), *options.split()]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_sentences_of_rows_where_episodes_have_none(tmp_path: Path) -> None:
    """As LeRobot's converter of images to video leaves it."""
    root = record(tmp_path / "theirs", Recording(codec=""))
    column(META, "tasks", None)(root)
    assert [planned(root).episode(e).instruction for e in range(3)] == list(SENTENCES)
    column(DATA, "task_index", lambda v: [3] * len(v))(root)
    with pytest.raises(UserError, match="has the task_index 3 where there are 3 sentences"):
        open_source(root)


def test_every_command_says_how_to_import(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = make_store(tmp_path / "own", [make_episode(0, 3)], SPEC).root
    for command in ("imitate --data X", "reward-model --data X", "world-model --data X",
                    f"world-model --data {own} --align-data X", "check data X"):  # fmt: skip
        out = [] if "check" in command else ["--out", str(tmp_path / "out")]
        assert main([*command.replace("X", str(theirs)).split(), *out]) == 2
        assert f"`wmpo data import {theirs} OUT` makes an episode store of it" in capsys.readouterr().err
    assert not list(theirs.glob("cache"))


def test_without_labels_there_is_no_reward_model(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, learn = (
        str(tmp_path / "ours"),
        ["--reward.imagined-fraction", "0", "--reward.fit.steps", "2", "--device", "cpu"],
    )
    assert main(["data", "import", str(theirs), out]) == 0 and "none labelled" in capsys.readouterr().out
    assert main(["reward-model", "--data", out, "--out", str(tmp_path / "reward"), *learn]) == 2
    assert "Nobody has said which of the 3 episodes" in capsys.readouterr().err
    assert main(["data", "label", out, "--success", "all", "--success-frames", "1"]) == 0
    main(["reward-model", "--data", out, "--out", str(tmp_path / "reward"), *learn])
    told = " ".join(capsys.readouterr().out.split())
    assert "WARNING: all 3 episodes succeed" in told and "clips of 4 frames at 30 Hz last 0.13 s" in told
