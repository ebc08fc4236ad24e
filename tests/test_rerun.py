"""Episodes as a recording for the Rerun viewer, read back by its library."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from episodes_by_hand import SPEC, make_episode, make_store
from wmpo.cli import main
from wmpo.errors import UserError
from wmpo.report.rrd import write_rrd
from wmpo.training.log import ProgressBar

pytest.importorskip("rerun")

from tests.test_web import CPU, played  # noqa: F401
from wmpo.web.play import Play
from wmpo.web.view import View

Table = dict[str, dict[int, list[Any]]]  # what is shown -> frame -> values


def read(path: Path, component: str) -> Table:
    from rerun.chunk import RrdReader

    found: Table = {}
    for chunk in RrdReader(path).stream().to_chunks():
        batch = chunk.to_record_batch()
        if component in batch.schema.names and "frame" in batch.schema.names:
            rows = zip(batch["frame"].to_pylist(), batch[component].to_pylist(), strict=True)
            found.setdefault(chunk.entity_path, {}).update(rows)
    return found


def picture(blob: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(bytes(blob[0]))).convert("RGB"))


def test_cameras_states_actions_and_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = [make_episode(0, 3), make_episode(1, 5, success=(4, 5)), make_episode(2, 4)]
    store = make_store(tmp_path / "store", episodes)
    out = tmp_path / "some.rrd"
    assert main(["data", "rerun", str(store.root), str(out), "--episodes", "2", "1"]) == 0
    assert "2 episodes" in capsys.readouterr().out
    pictures, numbers = read(out, "EncodedImage:blob"), read(out, "Scalars:scalars")
    assert pictures.keys() == {"/real/front", "/real/wrist"}
    for camera, (height, width) in SPEC.cameras.items():
        shown = [picture(blob) for _, blob in sorted(pictures[f"/real/{camera}"].items())]
        wanted = np.concatenate([episode.images[camera] for episode in episodes[1:]])
        assert shown[0].shape == (height, width, 3) and len(shown) == 11
        assert np.abs(np.stack(shown).astype(int) - wanted)[..., :2].mean() < 3
    assert [value for _, value in sorted(numbers["/success"].items())] == [[float(t in (4, 5))] for t in range(11)]
    assert [value[0] for _, value in sorted(numbers["/episode"].items())] == [1] * 6 + [2] * 5
    assert sorted(numbers["/action"]) == [0, 1, 2, 3, 4, 6, 7, 8, 9]  # the last frame of each has none
    np.testing.assert_allclose(numbers["/action"][7], episodes[2].actions[1])
    np.testing.assert_allclose(numbers["/real/state"][10], episodes[2].state[4])
    words = read(out, "TextLog:text")["/episodes"]
    assert words == {0: ["episode 1, policy, recorded: success. push block 1"],
                     6: ["episode 2, policy, recorded: failure. push block 0"]}  # fmt: skip

    for given, said in (
        ([str(out)], "exists already"),
        ([str(tmp_path / "some.mp4")], "another ending than .rrd"),
        ([str(tmp_path / "new.rrd"), "--episodes", "3"], "no episode 3"),
        ([str(tmp_path / "new.rrd"), "--run", str(tmp_path)], "no world model"),
    ):
        assert main(["data", "rerun", str(store.root), *given]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.rrd", "store"]


def test_the_dream_lies_beside(played: tuple[Play, View], tmp_path: Path) -> None:  # noqa: F811
    _, view = played
    bar = ProgressBar("episodes", 1, view_console(), None)
    write_rrd(tmp_path / "dream.rrd", view.store, [0], view.models, CPU, bar)
    pictures, numbers = (
        read(tmp_path / "dream.rrd", "EncodedImage:blob"),
        read(tmp_path / "dream.rrd", "Scalars:scalars"),
    )
    assert pictures.keys() == {"/real/front", "/dream/front"}
    assert pictures["/real/front"] == pictures["/dream/front"]  # this dream is true
    assert numbers["/real/state"].keys() == numbers["/dream/state"].keys()
    scores = [numbers[f"/{who}/success_probability"] for who in ("real", "dream")]
    assert scores[0].keys() == scores[1].keys() and all(0 < scores[0][t][0] < 1 for t in list(scores[0])[1:])
    with pytest.raises(UserError, match="exists already"):
        write_rrd(tmp_path / "dream.rrd", view.store, [0], None, CPU, bar)


def view_console() -> Any:
    from rich.console import Console

    return Console(quiet=True)
