"""The files themselves, as LeRobot's reader expects them; and LeRobot's reader, where it is installed."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from episodes_by_hand import SPEC, make_episode, make_store
from wmpo.cli import main
from wmpo.data.plain import export_plain
from wmpo.data.stats import image_stats, merge_stats, vector_stats
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    store = make_store(tmp_path_factory.mktemp("store"), [make_episode(0, 3), make_episode(1, 5, success=(0, 4, 5))])
    store.append([make_episode(2, 4, labels=True)])
    return store


def test_info(store: EpisodeStore) -> None:
    info = json.loads((store.root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (3, 15, 2, 10)
    assert info["splits"] == {"train": "0:3"}
    video = info["features"]["observation.images.front"]
    assert (video["dtype"], video["shape"], video["names"]) == ("video", [16, 24, 3], ["height", "width", "channels"])
    columns = set(pq.read_table(store.root / "data/chunk-000/file-000.parquet").column_names)
    assert columns == {name for name, feature in info["features"].items() if feature["dtype"] != "video"}
    assert [name for name in info["features"] if name.startswith("action")] == ["action"]


def test_frames(store: EpisodeStore) -> None:
    table = pq.read_table(store.root / "data/chunk-000/file-000.parquet")
    rows = {name: table[name].to_pylist() for name in table.column_names}
    assert rows["index"] == list(range(10))
    assert rows["episode_index"] == [0] * 4 + [1] * 6
    assert rows["frame_index"] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert np.allclose(rows["timestamp"], np.array(rows["frame_index"]) / 10)
    assert rows["task_index"] == [0] * 4 + [1] * 6
    assert np.allclose([action[0] for action in rows["action"][4:]], [1, 1.01, 1.02, 1.03, 1.04, 1.04])
    assert rows["action"] == rows["label.action"]
    assert rows["next.is_pad"] == [False] * 3 + [True] + [False] * 5 + [True]
    assert rows["next.done"] == [False] * 2 + [True] * 2 + [False] * 4 + [True] * 2
    assert rows["success"][4:] == [True, False, False, False, True, True]
    assert rows["next.success"][4:] == [False, False, False, True, True, True]
    assert rows["next.reward"][4:] == [0, 0, 0, 1, 1, 0]
    second = pq.read_table(store.root / "data/chunk-000/file-001.parquet")
    assert second["index"].to_pylist() == list(range(10, 15))


def test_episodes(store: EpisodeStore) -> None:
    rows = pq.read_table(store.root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    rows += pq.read_table(store.root / "meta/episodes/chunk-000/file-001.parquet").to_pylist()
    video = "videos/observation.images.wrist"
    names = ["length", "dataset_from_index", "dataset_to_index", "data/file_index", f"{video}/file_index"]
    assert [[row[name] for name in names] for row in rows] == [[4, 0, 4, 0, 0], [6, 4, 10, 0, 0], [5, 10, 15, 1, 1]]
    spans = [[row[f"{video}/from_timestamp"], row[f"{video}/to_timestamp"]] for row in rows]
    assert np.allclose(spans, [[0, 0.4], [0.4, 1.0], [0, 0.5]])
    assert [row["tasks"] for row in rows] == [["push block 0"], ["push block 1"], ["push block 0"]]


def test_tasks_are_the_index_of_a_pandas_frame(store: EpisodeStore) -> None:
    table = pq.read_table(store.root / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "__index_level_0__": ["push block 0", "push block 1"]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]


def test_video_times_and_key_frames(store: EpisodeStore) -> None:
    with av.open(str(store.root / "videos/observation.images.front/chunk-000/file-000.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec.name == "h264" and stream.average_rate == 10
        frames = list(container.decode(stream))
    assert np.allclose([frame.time for frame in frames], np.arange(10) / 10)
    assert frames[0].key_frame and frames[4].key_frame  # where the episodes begin


def test_stats(store: EpisodeStore) -> None:
    stats = json.loads((store.root / "meta/stats.json").read_text())
    actions = np.concatenate([np.arange(n) / 100 + i for i, n in enumerate((3, 5, 4))])
    assert np.allclose(stats["action"]["mean"], actions.mean())
    assert np.allclose(stats["action"]["q99"], np.quantile(actions, 0.99))
    assert stats["action"]["count"] == [12] and stats["observation.state"]["count"] == [15]
    labels = np.concatenate([actions[:8], -actions[8:]])
    assert np.allclose(stats["label.action"]["std"], labels.std())
    image = stats["observation.images.front"]
    assert np.shape(image["mean"]) == (3, 1, 1) and image["count"] == [15]
    number = np.repeat([0, 1, 2], (4, 6, 5)) / 255  # the red channel
    assert np.allclose(
        [image[name][0][0][0] for name in ("min", "max", "mean", "std")], [0, 2 / 255, number.mean(), number.std()]
    )


def test_stats_of_unions() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(50, 3)) + 5
    whole, merged = vector_stats(rows), merge_stats([vector_stats(rows[:10]), vector_stats(rows[10:])])
    for name in ("min", "max", "mean", "std", "count"):
        assert np.allclose(whole[name], merged[name])
    images = generator.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    stats = image_stats(images)
    for channel in range(3):
        values = images[..., channel] / 255
        for name, value in (
            ("min", values.min()),
            ("max", values.max()),
            ("mean", values.mean()),
            ("std", values.std()),
        ):
            assert np.isclose(stats[name][channel, 0, 0], value)
        assert np.isclose(stats["q50"][channel, 0, 0], np.quantile(values, 0.5, method="inverted_cdf"))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LeRobot's data sets, where 0.4 asks torchvision for pictures with a decoder in its place, if it has none."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    asks = hasattr(module, "decode_video_frames")
    if asks and not hasattr(pytest.importorskip("torchvision").io, "VideoReader"):
        monkeypatch.setattr(module, "decode_video_frames", frames_at)
    return module


def frames_at(path: Path, times: list[float], tolerance: float, backend: str) -> torch.Tensor:
    """(N, C, H, W) in [0, 1]."""
    with av.open(str(path)) as container:
        frames = {frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    found = [next(frame for at, frame in frames.items() if abs(at - time) < tolerance) for time in times]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 255


def test_lerobot_opens_it(store: EpisodeStore, module: Any) -> None:
    dataset = module.LeRobotDataset("local/store", root=store.root, video_backend="pyav")
    assert (len(dataset), dataset.meta.total_episodes) == (15, 3)
    episodes = [make_episode(0, 3), make_episode(1, 5), make_episode(2, 4)]
    place = 0
    for episode in episodes:
        for frame in range(episode.length + 1):
            item = dataset[place]
            for camera in SPEC.cameras:
                image = (item[f"observation.images.{camera}"] * 255).round().byte().permute(1, 2, 0).numpy()
                assert np.array_equal(image, episode.images[camera][frame])
            assert np.array_equal(item["observation.state"], episode.state[frame])
            assert item["task"] == episode.instruction
            place += 1


@pytest.fixture(scope="module")
def plain(store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "set"
    export_plain(store, [1, 2], out)
    return out


def test_a_plain_data_set_has_a_row_per_action(store: EpisodeStore, plain: Path) -> None:
    files = [pq.read_table(plain / f"data/chunk-000/file-00{number}.parquet") for number in (0, 1)]
    rows = {name: [value for file in files for value in file[name].to_pylist()] for name in files[0].column_names}
    assert rows.keys() == set(json.loads((plain / "meta/info.json").read_text())["features"]) - {
        f"observation.images.{camera}" for camera in SPEC.cameras
    }
    assert "next.is_pad" not in rows and [name for name in rows if "action" in name] == ["action"]
    assert rows["index"] == list(range(9)) and rows["episode_index"] == [0] * 5 + [1] * 4
    assert rows["frame_index"] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert rows["next.done"] == [False] * 4 + [True] + [False] * 3 + [True]
    meant = np.concatenate([store.episode(1).actions, -store.episode(2).actions])  # the labels of the last
    assert np.array_equal(rows["action"], meant)
    stats = json.loads((plain / "meta/stats.json").read_text())
    assert np.allclose(stats["action"]["mean"], meant.mean(0)) and stats["observation.state"]["count"] == [9]
    info = json.loads((plain / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], "wmpo" in info) == (2, 9, False)


def test_no_pixel_format_that_lerobot_can_not_encode(tmp_path: Path) -> None:
    """Its tools would take the one that info.json names; stores of 0.3.0 name RGB."""
    store = make_store(tmp_path / "store", [make_episode(0, 3)])
    path, key = store.root / "meta/info.json", "observation.images.front"
    info = json.loads(path.read_text())
    assert "video.pix_fmt" not in info["features"][key]["info"]
    info["features"][key]["info"]["video.pix_fmt"] = "gbrp"
    path.write_text(json.dumps(info))
    export_plain(EpisodeStore.open(store.root), [0], tmp_path / "plain")
    told = json.loads((tmp_path / "plain/meta/info.json").read_text())["features"][key]["info"]
    assert "video.pix_fmt" not in told and told["video.codec"] == "h264"


def test_lerobot_trains_on_a_plain_data_set(store: EpisodeStore, plain: Path, module: Any) -> None:
    ahead = {"action": [0, 0.1, 0.2]}
    dataset = module.LeRobotDataset("local/plain", root=plain, video_backend="pyav", delta_timestamps=ahead)
    assert (len(dataset), dataset.meta.total_episodes) == (9, 2)
    place = 0
    for episode in (store.episode(1), store.episode(2)):
        meant = episode.actions if episode.labels is None else episode.labels
        for frame in range(episode.length):
            item = dataset[place]
            for camera in SPEC.cameras:
                image = (item[f"observation.images.{camera}"] * 255).round().byte().permute(1, 2, 0).numpy()
                assert np.array_equal(image, episode.images[camera][frame])
            assert np.array_equal(item["action"][0], meant[frame]) and item["task"] == episode.instruction
            assert item["action_is_pad"].tolist() == [frame + n >= episode.length for n in range(3)]
            place += 1


def test_a_plain_data_set_from_the_command_line(
    store: EpisodeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "export", str(store.root), str(tmp_path / "out"), "--episodes"]
    assert main([*command, "successes"]) == 0
    assert "1 episodes, 5 frames" in capsys.readouterr().out
    for arguments, said in (
        ([*command, "all"], "is there already"),
        ([*command[:3], str(tmp_path / "other"), "--episodes", "expert"], "has no such episodes"),
        ([*command[:3], str(store.root / "plain")], "which is only read"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert main(["data", "check", str(tmp_path / "out")]) == 0


def written_by_lerobot(root: Path, video: bool, **choices: Any) -> Path:
    """Two episodes, in a file each; `choices` are of its `create`."""
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    vector = {"dtype": "float32", "shape": (2,), "names": ["pan.pos", "lift.pos"]}
    names = ["height", "width", "channels"]
    image = {"dtype": "video" if video else "image", "shape": (64, 64, 3), "names": names}
    features = {"observation.images.front": image, "observation.state": vector, "action": vector}
    more = {"root": root, "use_videos": video, **choices}
    dataset = module.LeRobotDataset.create("local/theirs", fps=30, features=features, **more)
    dataset.meta.update_chunk_settings(data_files_size_in_mb=1e-3, video_files_size_in_mb=1e-4)
    for episode in range(2):
        for frame in range(7):
            values = np.array([episode, frame], np.float32)
            picture = np.full((64, 64, 3), 10 * (frame + 1), np.uint8)
            observed = {"observation.images.front": picture, "observation.state": values}
            dataset.add_frame({**observed, "action": values + 1, "task": f"push block {episode}"})
        dataset.save_episode()
    dataset.finalize()
    assert len([*root.glob("data/*/*.parquet")]) == 2
    return root


def check_imported(root: Path, out: Path, numbers: tuple[int, ...]) -> None:
    """It holds these episodes of `written_by_lerobot`."""
    assert main(["data", "import", str(root), str(out), "--fps", "10", "--success", "all"]) == 0
    for number, episode in zip(numbers, EpisodeStore.open(out), strict=True):
        assert episode.instruction == f"push block {number}"
        assert episode.actions.tolist() == [[number + 1, 3], [number + 1, 6]]
        assert np.abs(episode.images["front"][:, 32, 32, 0] - np.array([10.0, 40, 70])).max() <= 4
        assert episode.state.tolist() == [[number, 0], [number, 3], [number, 6]]


@pytest.mark.parametrize("codec", ["as it chooses", "h264", "hevc", "images"])
def test_what_lerobot_writes_is_imported(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    choices: dict[str, Any] = {}
    if codec in ("h264", "hevc"):
        pytest.importorskip("lerobot")
        choices["vcodec"] = codec
        if importlib.util.find_spec("lerobot.configs.video"):  # from 0.6 on
            from lerobot.configs.video import RGBEncoderConfig

            choices = {"rgb_encoder": RGBEncoderConfig(vcodec=codec)}
    root = written_by_lerobot(tmp_path / "theirs", codec != "images", **choices)
    check_imported(root, tmp_path / "ours", (0, 1))


@pytest.mark.parametrize("video", [True, False], ids=["video", "images"])
def test_what_its_tools_make_of_that_is_imported(video: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = written_by_lerobot(tmp_path / "theirs", video)
    tools = pytest.importorskip("lerobot.datasets.dataset_tools")
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    theirs = module.LeRobotDataset("local/theirs", root=root, video_backend="pyav")
    tools.split_dataset(theirs, {"late": [1]}, output_dir=tmp_path / "split")
    both = {"output_repo_id": "local/both", "output_dir": tmp_path / "both"}
    late = module.LeRobotDataset("local/late", root=tmp_path / "split/late", video_backend="pyav")
    tools.merge_datasets([late, theirs], **both)
    check_imported(tmp_path / "both", tmp_path / "both-ours", (1, 0, 1))
    twice = module.LeRobotDataset("local/both", root=tmp_path / "both", video_backend="pyav")
    tools.delete_episodes(twice, [1], output_dir=tmp_path / "cut", repo_id="local/cut")
    check_imported(tmp_path / "cut", tmp_path / "cut-ours", (1, 1))
    if not video:
        tools.convert_image_to_video_dataset(theirs, output_dir=tmp_path / "film", repo_id="local/film", num_workers=1)
        check_imported(tmp_path / "film", tmp_path / "film-ours", (0, 1))


def test_a_store_that_lerobot_has_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    tools = pytest.importorskip("lerobot.datasets.dataset_tools")
    spec = replace(SPEC, cameras={"front": (64, 64)})  # its encoder dies of smaller pictures
    episodes = [make_episode(n, 4 + n, success=(2,) if n else (), spec=spec) for n in range(3)]
    store = make_store(tmp_path / "store", episodes, spec)
    ours = module.LeRobotDataset("local/store", root=store.root, video_backend="pyav")
    tools.delete_episodes(ours, [1], output_dir=tmp_path / "cut", repo_id="local/cut")
    tools.merge_datasets([ours, ours], output_repo_id="local/merged", output_dir=tmp_path / "merged")
    tools.split_dataset(ours, {"two": [1, 2]}, output_dir=tmp_path)
    for name, kept in (("cut", [0, 2]), ("merged", [0, 1, 2, 0, 1, 2]), ("two", [1, 2])):
        with pytest.raises(UserError, match="LeRobot's tools have edited since"):
            EpisodeStore.open(tmp_path / name)
        assert main(["data", "import", str(tmp_path / name), str(tmp_path / f"{name}-again")]) == 0
        again = EpisodeStore.open(tmp_path / f"{name}-again")
        for episode, number in zip(again, kept, strict=True):
            assert np.array_equal(episode.actions, store.episode(number).actions)
            assert np.array_equal(episode.success, store.episode(number).success)
            assert episode.length == store.episode(number).length
