"""Imports that leave videos where they are: what is read is what an importer decodes, and nothing of it is written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from episodes_by_hand import assert_same, make_episode
from recordings import Recording, record
from test_importing import Silent, made, planned
from test_run_data import TINY
from wmpo.cli import main
from wmpo.data import in_place, layout
from wmpo.data.cache import FrameCache
from wmpo.data.compatibility import content
from wmpo.data.plain import export_plain
from wmpo.data.recorded import frames_at
from wmpo.data.store import EpisodeStore
from wmpo.data.video import LOSSLESS, lossy
from wmpo.errors import UserError
from wmpo.importing import in_place as taking
from wmpo.importing.description import describe
from wmpo.importing.in_place import meaning
from wmpo.importing.opening import open_source
from wmpo.importing.store import import_store
from wmpo.importing.success import Verdict, relabel

Captured = pytest.CaptureFixture[str]
META = "meta/episodes/chunk-000/file-000.parquet"
FRONT = "videos/observation.images.front/chunk-000/file-000.mp4"
ENCODERS = {
    "h264": ("libx264", {"g": "7", "bf": "3"}),
    "h264-open": ("libx264", {"g": "12", "x264-params": "open-gop=1:bframes=3"}),
    "hevc-open": ("libx265", {"g": "12", "x265-params": "log-level=none"}),
    "av1": ("libsvtav1", {"g": "10", "preset": "12"}),
}


def kept(root: Path) -> dict[str, tuple[str, int, int]]:
    """All that is in a folder: what each file holds, when it was changed, its kind and rights."""
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.lstat().st_mtime_ns,
            path.lstat().st_mode,
        )
        for path in [root, *root.rglob("*")]
    }


def moving(path: Path, encoder: str, frames: int, size: tuple[int, int] = (48, 64), fps: int = 30) -> None:
    """A video of noise that moves, in place of the file."""
    name, options = ENCODERS[encoder]
    noise = np.random.default_rng(frames).integers(0, 256, (*size, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(name, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            image = np.roll(noise, (number, 3 * number), (0, 1))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def check_pictures(store: EpisodeStore, source: Path, **choices: Any) -> None:
    """Those of the store are the importer's, whichever way they are asked for."""
    plan = planned(source, **choices)
    due = [plan.episode(number).images for number in range(len(plan))]
    every = list(store)
    first = store.with_first_frames([2, 0])
    for camera in store.spec.cameras:
        for number, images in enumerate(due):
            assert np.array_equal(every[number].images[camera], images[camera])
            assert np.array_equal(store.episode(number).images[camera], images[camera])
        assert np.array_equal(first[0].images[camera][0], due[2][camera][0])
        whole = np.concatenate([images[camera] for images in due])
        blocks = [block for part in range(store.parts) for block in store.video(part, camera).blocks()]
        assert np.array_equal(np.concatenate(blocks), whole)
        cached = FrameCache(store).images[camera]
        assert np.array_equal(cached.transpose(0, 2, 3, 1), whole)


@pytest.mark.parametrize(
    "recording",
    [Recording(), Recording(per_file=9), Recording(codec="libsvtav1"), Recording(version="v2.1")],
    ids=["v3", "v3-one-file", "v3-av1", "v2.1"],
)
def test_videos_stay_where_they_are(recording: Recording, tmp_path: Path, capsys: Captured) -> None:
    root, out = record(tmp_path / "theirs", recording), tmp_path / "ours"
    before = kept(root)
    assert main(["data", "import", str(root), str(out)]) == 0
    told = capsys.readouterr().out
    assert "front, wrist: read in place" in told and "MB of video are read in place in " in told
    links = [path for path in out.rglob("*.mp4")]
    videos = [path for path in root.rglob("*.mp4")]
    assert all(path.is_symlink() for path in links) and {path.resolve() for path in links} == set(videos)
    own, elsewhere = in_place.content(out)
    assert elsewhere == set(videos) and in_place.size(own) < sum(path.stat().st_size for path in out.rglob("*"))
    store = EpisodeStore.open(out)
    check_pictures(store, root)
    again = made(root, out)  # the same import is done
    assert again.parts == store.parts == 3 and before == kept(root)
    assert main(["data", "check", str(out)]) == 0
    assert f"that are read in place, such as {min(videos)}" in capsys.readouterr().out
    assert main(["data", "check", str(root)]) == 0 and "an import reads them in place" in capsys.readouterr().out


@pytest.mark.parametrize("encoder", ENCODERS)
def test_frames_in_another_order_and_far_from_key_frames(encoder: str, tmp_path: Path) -> None:
    r = Recording(lengths=(17, 30, 23), per_file=9, cameras=(("observation.images.front", (48, 64)),))
    root = record(tmp_path / "theirs", r)
    moving(root / FRONT, encoder, 70)
    store = made(root, tmp_path / "ours")
    check_pictures(store, root)
    whole = list(frames_at(root / FRONT, [n / 30 for n in range(70)], (48, 64), 30))
    for part, begin in ((0, 0), (1, 17), (2, 47)):
        video = store.video(part, "front")
        for number, frame in enumerate(video.at(range(video.count))):
            assert np.array_equal(frame, whole[begin + number])
            assert np.array_equal(next(video.frames(number)), frame)


def test_cameras_that_lie_in_files_of_their_own(tmp_path: Path) -> None:
    """LeRobot begins a new file when one is full, which a camera of larger pictures does sooner. Others' episodes may
    lie between."""
    root, other = record(tmp_path / "theirs", Recording()), record(tmp_path / "other", Recording(per_file=9))
    for path in (root / "videos/observation.images.wrist").rglob("*.mp4"):
        path.unlink()
    place = "videos/observation.images.wrist/chunk-000/file-000.mp4"
    shutil.copy(other / place, root / place)
    table = pq.read_table(root / META, partitioning=None)
    theirs = pq.read_table(other / META, partitioning=None)
    for name in table.column_names:
        if "wrist" in name:
            table = table.set_column(table.column_names.index(name), name, theirs[name])
    pq.write_table(table, root / META)
    store = made(root, tmp_path / "ours")
    check_pictures(store, root)
    assert [len(store.in_place[camera]) for camera in ("front", "wrist")] == [2, 1]
    exported = tmp_path / "plain"
    export_plain(store, [0, 2], exported)  # where files hold episodes that are left out
    assert not any(path.is_symlink() for path in exported.rglob("*"))
    for number, place_there in enumerate((0, 2)):
        images = planned(exported).episode(number).images
        for camera, due in store.episode(place_there).images.items():
            assert np.array_equal(images[camera], due[:-1])


def test_only_what_stays_as_it_is(tmp_path: Path) -> None:
    root = record(tmp_path / "theirs", Recording(lengths=(6, 9, 7)))
    store = made(root, tmp_path / "one", image_size=(48, 64), cameras=("wrist=hand", "front=top"))
    assert store.in_place.keys() == {"top"}  # the other is resized
    check_pictures(store, root, image_size=(48, 64), cameras=("wrist=hand", "front=top"))
    assert not made(root, tmp_path / "two", fps=15).in_place
    assert not import_store(planned(root), tmp_path / "three", lossy(), Silent()).in_place
    assert not made(record(tmp_path / "images", Recording(codec="")), tmp_path / "four").in_place
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"fps": 29.97}))
    assert not made(root, tmp_path / "five").in_place  # a store counts in whole frames a second
    assert not any("in place" in line for line in describe(open_source(root)))


def test_a_codec_that_no_store_reads_is_encoded_anew(tmp_path: Path) -> None:
    root = record(tmp_path / "theirs", Recording(codec="mpeg4"))
    assert not made(root, tmp_path / "ours").in_place
    assert "read in place" not in meaning(planned(root), LOSSLESS)


def test_a_copy_is_the_same_in_all_numbers(tmp_path: Path, capsys: Captured) -> None:
    root = record(tmp_path / "theirs", Recording())
    there, copy = made(root, tmp_path / "there"), tmp_path / "copy"
    assert main(["data", "import", str(root), str(copy), "--copy"]) == 0
    told = capsys.readouterr().out
    assert "front, wrist: copied as they are" in told and "are read in place in" not in told
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    store = EpisodeStore.open(copy)
    for one, other in zip(there, store, strict=True):
        assert_same(one, other)
    assert content(there) == content(store)
    for name in ("meta/stats.json", "meta/info.json", "meta/tasks.parquet"):
        assert (copy / name).read_bytes() == (there.root / name).read_bytes()
    with pytest.raises(UserError, match="is there already"):
        made(root, there.root, copy=True)
    shutil.rmtree(root)
    shutil.copytree(copy, tmp_path / "elsewhere", copy_function=shutil.copy)  # with other times
    check = [EpisodeStore.open(place).episode(1) for place in (copy, tmp_path / "elsewhere")]
    assert_same(*check)


def test_where_no_links_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    root = record(tmp_path / "theirs", Recording())

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert main(["data", "import", str(root), str(tmp_path / "ours")]) == 0
    assert "no links can be made there, so the videos were copied" in capsys.readouterr().out
    check_pictures(EpisodeStore.open(tmp_path / "ours"), root)


def test_all_that_learns_and_labels_leaves_the_folder_alone(tmp_path: Path, capsys: Captured) -> None:
    lengths = (8, 9, 7, 8, 9, 8)
    r = Recording(lengths=lengths, cameras=(("observation.images.front", (16, 16)),), size=2, codec="libx264")
    root, out = record(tmp_path / "theirs", r), tmp_path / "ours"
    os.chmod(root / FRONT, 0o444)
    before = kept(root)
    assert main(["data", "import", str(root), str(out), "--success", "all", "--success-frames", "1"]) == 0
    (tmp_path / "labels.csv").write_text("episode_index,success\n0,0\n1,1\n2,1\n3,0\n5,0\n")
    tried, labels = str(tmp_path / "tried"), ["--success", str(tmp_path / "labels.csv")]
    assert main(["data", "import", str(root), tried, "--rollouts-of", "act", *labels]) == 0
    data = ["--data", str(out)]
    options: dict[str, list[str]] = {}
    for name, value in zip(TINY[::2], TINY[1::2], strict=True):
        if ".align" not in name:
            options.setdefault(name[2:].split(".")[0], []).extend([name, value])
    world = ["--world-model", str(tmp_path / "world/model")]
    judged = ["--policy", str(tmp_path / "imitation/policies/base"), "--reward.threshold", "half", "--device", "cpu"]
    for command in (
        ["data", "label", str(out), *labels],
        ["imitate", *data, "--out", str(tmp_path / "imitation"), *options["policy"], "--device", "cpu"],
        ["world-model", *data, "--out", str(tmp_path / "world"), *options["world-model"], "--device", "cpu"],
        ["reward-model", "--data", tried, *world, "--out", str(tmp_path / "reward"), *options["reward"], *judged],
        ["data", "check", str(out)],
        ["data", "export", str(out), str(tmp_path / "plain")],
        ["data", "import", str(out), str(tmp_path / "second")],
    ):  # fmt: skip
        assert main(command) == 0, capsys.readouterr().err
    store = EpisodeStore.open(out)
    assert [row.succeeded for row in store.records()] == [False, True, True, False, True, False]
    store.append([make_episode(9, 5, spec=store.spec)])
    check_pictures_of_first(store, planned(root), len(lengths))
    second = EpisodeStore.open(tmp_path / "second")
    assert all(path.resolve().is_relative_to(root) for path in second.root.rglob("*.mp4"))
    assert np.array_equal(second.episode(4).images["front"], store.episode(4).images["front"])
    for folder in (out, tmp_path / "second", tried):
        shutil.rmtree(folder)
    assert before == kept(root)


def check_pictures_of_first(store: EpisodeStore, plan: Any, count: int) -> None:
    for number in range(count):
        for camera, due in plan.episode(number).images.items():
            assert np.array_equal(store.episode(number).images[camera], due)


def test_an_import_of_an_import(tmp_path: Path, capsys: Captured) -> None:
    """Links lead to whoever has recorded the videos. What a store of ours has encoded is encoded again: it would be
    gone once that store is labelled, or has grown."""
    root = record(tmp_path / "theirs", Recording())
    between = made(root, tmp_path / "between", image_size=(48, 64))
    assert between.in_place.keys() == {"front"}
    capsys.readouterr()
    assert main(["data", "import", str(between.root), str(tmp_path / "ours")]) == 0
    told = capsys.readouterr().out
    assert "front: read in place; wrist: encoded without loss" in told
    assert f"are read in place in {root / 'videos/observation.images.front/chunk-000'}: keep them there" in told
    due = between.episode(1)
    copy = made(root, tmp_path / "copy", copy=True)
    assert made(copy.root, tmp_path / "of-a-copy").in_place.keys() == {"front", "wrist"}
    for store in (between, copy):
        relabel(store, {0: Verdict(True, 1)})
        store.append([make_episode(0, 3, spec=store.spec)])
    assert_same(EpisodeStore.open(tmp_path / "ours").episode(1), due)
    assert np.array_equal(EpisodeStore.open(tmp_path / "of-a-copy").episode(1).images["front"], due.images["front"])


def test_videos_that_are_links_within_their_data_set(tmp_path: Path) -> None:
    """As those that keep versions of files make them: what counts is what the file itself is called."""
    for suffix in ("", ".mp4"):
        root = record(tmp_path / f"theirs{suffix}", Recording())
        (root / "objects").mkdir()
        for number, path in enumerate(sorted(root.rglob("*.mp4"))):
            target = path.rename(root / f"objects/{number}{suffix}")
            path.symlink_to(target)
        store = made(root, tmp_path / f"ours{suffix}")
        assert bool(store.in_place) is bool(suffix)
        check_pictures(store, root)


def test_a_store_that_grows(tmp_path: Path) -> None:
    """Small parts are merged, those that are read in place among themselves; what is appended is encoded."""
    cameras = (("observation.images.front", (16, 16)), ("observation.images.wrist", (16, 24)))
    root = record(tmp_path / "theirs", Recording(lengths=(3,) * 40, per_file=7, cameras=cameras))
    before = kept(root)
    store = made(root, tmp_path / "ours")
    assert store.parts == 9 and len(list((store.root / "data").rglob("*.parquet"))) == 9
    videos = store.root / "videos/observation.images.front"
    for number in range(40):
        store.append([make_episode(number, 2, spec=store.spec)])
    assert store.parts == 9 + 9 and len(list(videos.rglob("*.mp4"))) == 6 + 9
    again = EpisodeStore.open(store.root)
    check_pictures_of_first(again, planned(root), 40)
    for number in range(40):
        assert np.array_equal(
            again.episode(40 + number).images["front"], make_episode(number, 2, spec=store.spec).images["front"]
        )
    relabel(again, {5: Verdict(True, 1), 60: Verdict(True, 1)})
    again = EpisodeStore.open(store.root)
    assert [row.index for row in again.records() if row.succeeded] == [5, 60]
    check_pictures_of_first(again, planned(root), 40)
    cache = FrameCache(again)
    assert np.array_equal(
        cache.images["front"][cache.first[79]].transpose(1, 2, 0), again.episode(79).images["front"][0]
    )
    assert len(list(videos.rglob("*.mp4"))) == 6 + 9 and before == kept(root)


def test_lerobot_finds_all_by_the_layout(tmp_path: Path) -> None:
    """As its reader does: by the template of info.json, the rows of meta/episodes, and times that are 1e-4 s near; also
    where some episodes are read in place and others encoded."""
    store = made(
        record(tmp_path / "theirs", Recording(codec="libsvtav1", cameras=(("front", (64, 64)),))), tmp_path / "ours"
    )
    store.append([make_episode(3, 4, spec=store.spec)])
    info = json.loads((store.root / layout.INFO).read_text())
    assert info["features"]["observation.images.front"]["info"]["video.codec"] == "av1"
    tables = [pq.read_table(path, partitioning=None) for path in sorted(store.root.glob("meta/episodes/*/*.parquet"))]
    assert len({str(table.schema) for table in tables}) == 1
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["episode_index"] for row in rows] == [0, 1, 2, 3]
    key = "observation.images.front"
    for row in rows:
        numbers = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        path = store.root / info["video_path"].format(video_key=key, **numbers)
        with av.open(str(path)) as container:
            shown = {frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
        for frame, image in enumerate(store.episode(row["episode_index"]).images["front"]):
            due = row[f"videos/{key}/from_timestamp"] + frame / info["fps"]
            [found] = [picture for time, picture in shown.items() if abs(time - due) < 1e-4]
            assert np.array_equal(found, image)
        assert row[f"videos/{key}/to_timestamp"] == pytest.approx(due + 1 / info["fps"])


def test_an_import_is_stopped_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = record(tmp_path / "theirs", Recording())
    before = kept(root)
    due = made(root, tmp_path / "due")
    for copy in (False, True):
        out = tmp_path / f"ours-{copy}"
        for stop in range(9):  # calls until the import is killed: links, the store, episodes
            calls = 0

            def killed(real: Callable[..., Any], stop: int = stop) -> Callable[..., Any]:
                def call(*args: Any, **more: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls > stop % 5:
                        raise KeyboardInterrupt
                    return real(*args, **more)

                return call

            with monkeypatch.context() as m:
                m.setattr(taking, "lay", killed(in_place.lay))
                m.setattr(EpisodeStore, "append", killed(EpisodeStore.append))
                m.setattr(EpisodeStore, "create", killed(EpisodeStore.create))
                try:
                    made(root, out, copy=copy)
                except KeyboardInterrupt:
                    assert not out.exists()
        store = made(root, out, copy=copy)
        assert content(store) == content(due) and before == kept(root)
        for one, other in zip(due, store, strict=True):
            assert_same(one, other)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "due", "ours-False", "ours-True"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def swapped(path: Path) -> None:
    """Another film of as many bytes."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "moved": (lambda path: path.rename(path.with_name("x.mp4")), "is gone: put it back, or a link to where it is now"),
    "folder moved": (lambda path: path.parents[3].rename(path.parents[4] / "x"), "is gone: put it back"),
    "cut": (cut, "bytes where it had"),
    "replaced": (swapped, "is another one than was imported"),
    "a folder": (folder, "is no mp4 file"),
    "a circle": (circle, "can't be read"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_since_is_told(name: str, tmp_path: Path, capsys: Captured) -> None:
    root, out = record(tmp_path / "theirs", Recording()), tmp_path / "ours"
    made(root, out)
    change, words = CHANGES[name]
    FrameCache(EpisodeStore.open(out))  # what is decoded already doesn't hide it
    change(root / FRONT)
    imitate = ["imitate", "--data", str(out), "--out", str(tmp_path / "learned"), "--device", "cpu"]
    for command in (imitate, ["data", "check", str(out)], ["data", "export", str(out), str(tmp_path / "plain")]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and words in told
        assert f"The video {root / FRONT}, which {out} reads in place," in told
    with pytest.raises(UserError, match="The video"):
        EpisodeStore.open(out).episode(0)
    with pytest.raises(UserError, match="The video"):
        content(EpisodeStore.open(out))


def test_what_is_the_same_in_spite_of_its_time_or_place(tmp_path: Path) -> None:
    root, out = record(tmp_path / "theirs", Recording()), tmp_path / "ours"
    due = made(root, out).episode(1)
    for path in root.rglob("*.mp4"):
        os.utime(path, (1, 1))
    assert_same(EpisodeStore.open(out).episode(1), due)
    root.rename(tmp_path / "moved")
    root.symlink_to("moved")
    assert_same(EpisodeStore.open(out).episode(1), due)
    shutil.copytree(out, tmp_path / "whole", copy_function=shutil.copy)  # as cp -rL does
    shutil.rmtree(tmp_path / "moved")
    assert_same(EpisodeStore.open(tmp_path / "whole").episode(1), due)


def hostile(link: Path, target: Path) -> None:
    """A store of a stranger's, whose info says of `target` whatever is needed."""
    link.unlink()
    link.symlink_to(target)
    path = link.parents[3] / layout.INFO
    info = json.loads(path.read_text())
    status = target.stat()
    film = info["wmpo"]["in_place"]["front"][0]
    film |= {"size": status.st_size, "modified": status.st_mtime_ns}
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("kind", ["pipe", "device", "playlist", "other suffix", "text", "audio", "folder"])
def test_nothing_but_videos_is_opened(kind: str, tmp_path: Path, capsys: Captured) -> None:
    root, out = record(tmp_path / "theirs", Recording()), tmp_path / "ours"
    made(root, out)
    target = tmp_path / "target.mp4"
    words = "is no mp4 file"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "device":
        target = Path("/dev/zero")
    elif kind == "playlist":
        target.write_text(f"ffconcat version 1.0\nfile {root / FRONT}\n")
        words = "target.mp4 is damaged or truncated"
    elif kind == "other suffix":
        target = target.with_suffix(".mov")
        shutil.copy(root / FRONT, target)
    elif kind == "folder":
        target.mkdir()
    elif kind == "text":
        target.write_text("secret " * 1000)
        words = "target.mp4 is damaged or truncated"
    else:
        with av.open(str(target), "w") as container:
            stream: Any = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        words = "target.mp4 shows no pictures"
    hostile(out / FRONT, target)
    for command in (["imitate", "--data", str(out), "--out", str(tmp_path / "learned"), "--device", "cpu"],
                    ["data", "check", str(out)]):  # fmt: skip
        assert main(command) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1


def test_a_strangers_store_says_something_else(tmp_path: Path) -> None:
    root, out = record(tmp_path / "theirs", Recording()), tmp_path / "ours"
    made(root, out)
    whole = json.loads((out / layout.INFO).read_text())
    film = whole["wmpo"]["in_place"]["front"][0]
    for front, words in (
        ([film | {"codec": "rawvideo"}] * 2, r"codec 'rawvideo' can't be read in place"),
        ([film | {"codec": "av1"}] * 2, "is h264 in place of av1"),
        ([film], "names no place in a video of 'front'"),
        ([film] * 9, "numbers of its files are out of order"),
        ("x", "it must be a list"),
    ):
        info = json.loads(json.dumps(whole))
        info["wmpo"]["in_place"]["front"] = front
        (out / layout.INFO).write_text(json.dumps(info))
        with pytest.raises(UserError, match=words):
            EpisodeStore.open(out).episode(0)
    info = whole | {"wmpo": whole["wmpo"] | {"in_place": {"../../x": [film]}}}
    (out / layout.INFO).write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"there is no camera '../../x' to read in place"):
        EpisodeStore.open(out)
    (out / layout.INFO).write_text(json.dumps(whole))
    for begin, words in ((-1.0, "names no place"), (1e30, "names no place"), (0.5, "ends before")):
        there = sorted((out / "meta/episodes").rglob("*.parquet"))[0]
        table = pq.read_table(there, partitioning=None)
        name = "videos/observation.images.front/from_timestamp"
        changed = table.set_column(table.column_names.index(name), name, pa.array([begin] * len(table), pa.float64()))
        pq.write_table(changed, there)
        with pytest.raises(UserError, match=words):
            EpisodeStore.open(out).episode(0)


@pytest.mark.parametrize("place", ["videos", "videos/observation.images.front", "data/chunk-000", "meta"])
def test_nothing_is_written_through_a_link_to_a_folder(place: str, tmp_path: Path) -> None:
    store = made(record(tmp_path / "theirs", Recording()), tmp_path / "ours")
    mine = tmp_path / "mine"
    (store.root / place).rename(mine)
    (mine / "file-999").write_text("precious")
    (store.root / place).symlink_to(mine)
    before = kept(mine)
    again = EpisodeStore.open(store.root)
    for work in (
        lambda: again.append([make_episode(0, 3, spec=store.spec)]),
        lambda: relabel(again, {0: Verdict(True)}),
    ):
        with pytest.raises(UserError, match="is a link to another folder, where nothing is written"):
            work()
    assert before == kept(mine)


def test_a_cache_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    store = made(record(tmp_path / "theirs", Recording()), tmp_path / "ours")
    FrameCache(store)
    mine = tmp_path / "mine"
    for name, known in (("front.rgb", 1), ("front.tmp", 0), (f".front.json.{os.getpid()}.tmp", 0)):
        about = json.loads((store.root / "cache/front.json").read_text())
        (store.root / "cache/front.json").write_text(json.dumps(about[:known]))
        mine.write_text("precious" * 10_000)
        place = store.root / "cache" / name
        place.unlink(missing_ok=True)
        place.symlink_to(mine)
        assert np.array_equal(
            FrameCache(store).images["front"][0].transpose(1, 2, 0), store.episode(0).images["front"][0]
        )
        assert mine.read_text() == "precious" * 10_000


def test_an_import_begins_anew_without_touching_what_links_lead_to(tmp_path: Path) -> None:
    root, out = record(tmp_path / "theirs", Recording()), tmp_path / "ours"
    partial = tmp_path / ".ours.importing"
    partial.mkdir()
    (partial / "videos").symlink_to(root / "videos")
    before = kept(root)
    made(root, out)
    assert before == kept(root)
    shutil.rmtree(out)
    partial.symlink_to(root)
    with pytest.raises(UserError, match="importing is a link to another folder"):
        made(root, out)
    assert before == kept(root)


def test_frames_that_are_missing_are_told_before_the_first_episode(tmp_path: Path) -> None:
    """No picture is decoded for it."""
    root = record(tmp_path / "theirs", Recording(lengths=(40,), cameras=(("observation.images.front", (48, 64)),)))
    with av.open(str(root / FRONT), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in [*range(20), *range(21, 41)]:  # one was dropped
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match=r"shows no frame at 0\.667 s, as its table says"):
        made(root, tmp_path / "ours")
    assert not list(tmp_path.glob(".ours*"))
