"""`wmpo data` and `wmpo view` given what they can't use: one sentence, exit status 2, nothing lost, nothing half made.

What recordings may be damaged in is in test_importing.py, stores in test_damaged_stores.py.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from episodes_by_hand import make_episode, make_store
from tests.recordings import Recording, record, record_hdf5
from tests.test_labelling import QUICK, by_hand, lit
from tests.test_malformed_inputs import Case, digests, refused, seen_by_nobody, text
from wmpo import labelling
from wmpo.cli import main
from wmpo.data.store import EpisodeStore
from wmpo.importing.success import Verdict, read_csv
from wmpo.io.files import file_lock
from wmpo.labelling import Labels, keep
from wmpo.losses.verdicts import Quality

Damage = Callable[[Path], object]
LABEL, IMPORT = "data label store --success labels.csv", "data import theirs out --success labels.csv"
HEAD = "episode_index,success,frame\n"
LABELS: dict[str, tuple[str | bytes, str]] = {
    "UTF-16": ((HEAD + "0,1,2\n").encode("utf-16"), "no table of comma-separated values in UTF-8"),
    "Latin-1": (b"episode_index,success,note\n0,1,caf\xe9\n", "no table of comma-separated values in UTF-8"),
    "a zero byte": (b"episode_index,success\n0,\x001\n", "line 2: give an episode_index and 1 or 0"),
    "empty": ("", "holds no labels"),
    "only a first line": (HEAD, "holds no labels"),
    "no first line": ("0,1\n1,0\n", "line 2: give an episode_index"),
    "twice": (HEAD + "0,1,2\n1,0,\n0,0,\n", "line 4: episode 0 is named twice"),
    "twice, further down": (HEAD + "\n\n0,1,2\n0,1,2\n", "line 5: episode 0 is named twice"),
    "a column twice": ("episode_index,success,Success\n0,1,0\n", "line 1: the column success is named twice"),
    "a column too many": ("episode_index,success\n0,1,3\n", "line 2: 3 values stand below a first line that names 2"),
    "a column that is misspelled": ("episode_index,success,frames\n0,1,3\n", "'frames'; did you mean frame?"),
    "another name of it": ("episode_index,success,first_frame\n0,1,3\n", "'first_frame'; did you mean frame?"),
    "semicolons": ("episode_index;success;frame\n0;1;3\n", "line 2: give an episode_index"),
    "a frame beyond the end": (HEAD + "0,1,6\n", "Episode 0 succeeds from frame 6 on, but has frames 0 to 5"),
    "a frame of thousands of digits": (HEAD + f"0,1,{'9' * 5000}\n", "line 2: frame is the number"),
    "an episode of thousands of digits": (HEAD + f"{'9' * 5000},1,1\n", "line 2: give an episode_index"),
    "an episode beyond the last": (HEAD + "3,1,1\n", "line 2: episode 3 is named but there are 3"),
    "below 0": (HEAD + "-1,1,1\n", "line 2: give an episode_index"),
    "a fraction": (HEAD + "0,1,1.5\n", "line 2: frame is the number"),
    "another script's digit": (HEAD + "٣,1,1\n", "line 2: give an episode_index"),
    "an open quote": (HEAD + '"0,1,1\n1,0,\n', "line 3: give an episode_index"),
    "a huge field": (HEAD + f'0,1,"{"x" * 200_000}"\n', "no table of comma-separated values"),
    "a frame of a failure": (HEAD + "0,0,2\n", "line 2: frame is the number of the first frame that shows success"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    make_store(root / "store", [make_episode(n, 5 + n, (3,) if n % 2 else ()) for n in range(3)])
    record(root / "theirs", Recording(codec="", lengths=(6, 6, 7)))
    record(root / "videos", Recording(lengths=(6, 6, 7)))
    record(root / "old", Recording(version="v2.1", codec=""))
    record_hdf5(root / "demos.hdf5")
    return root


@pytest.fixture
def given(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(whole, tmp_path / "given")
    monkeypatch.chdir(tmp_path / "given")
    return tmp_path / "given"


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_say_nothing_sure(name: str, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = LABELS[name]
    text("labels.csv", content)(given)
    for command in (LABEL, IMPORT):
        assert words in refused(command.split(), given, capsys)
        assert not list(given.glob("out"))


def test_labels_as_spreadsheets_write_them(tmp_path: Path) -> None:
    """With a mark of the byte order, other ends of lines, spaces, empty lines, columns of their own, in any order."""
    for content in (
        "\ufeffepisode_index,success,frame\r\n0,1,2\r\n1,0,\r\n",
        "episode_index,success,frame\r0,1,2\r1,0,\r",
        "Episode_Index, Success, Frame\n\n0, YES, 2\n ,,\n1, no,\n",
        'note,frame,success,episode_index,,\n"a, b\nc",2,1,0,,\n,,0,1,,\n',
        "episode_index,success,frame,name\n0,1,2\n1,0\n",
    ):
        (tmp_path / "labels.csv").write_bytes(content.encode())
        assert read_csv(tmp_path / "labels.csv", 2) == {0: Verdict(True, 2), 1: Verdict(False)}, content


def pipe(path: str) -> Damage:
    """There, of which nobody ever reads or writes the other end."""

    def damage(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        os.mkfifo(root / path)

    return damage


def loop(path: str) -> Damage:
    def damage(root: Path) -> None:
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(Path(path).name)

    return damage


TABLE, VIDEO = "data/chunk-000/file-000.parquet", "videos/observation.images.front/chunk-000/file-000.mp4"
CASES = [
    Case("data label store --success typo", "give a file that ends in .csv, all, none or model"),
    Case("data label store --success model --success-frames 3", "--success-frames does nothing here"),
    Case(f"data label store --success all --success-frames {'9' * 30}", "it must be from 1 to 1000000"),
    Case("data label nowhere --success all", "There is no episode store in nowhere"),
    Case("data label demos.hdf5 --success all", "demos.hdf5 is an HDF5 file"),
    Case("data label theirs --success all", "theirs is a LeRobot data set"),
    Case("data label store/meta/info.json --success all", "There is no episode store"),
    Case(LABEL, "labels.csv can't be read: Is a directory", lambda root: (root / "labels.csv").mkdir()),
    Case(LABEL, "labels.csv can't be read: Too many levels", loop("labels.csv")),
    Case(LABEL, "labels.csv are no file but a pipe or a device", pipe("labels.csv")),
    Case(LABEL, "a pipe or a device", lambda root: (root / "labels.csv").symlink_to("/dev/zero")),
    Case(IMPORT, "labels.csv are no file but a pipe or a device", pipe("labels.csv")),
    Case("data label store --success all", "store/.lock is no file but a pipe", pipe("store/.lock")),
    Case("data label store --success all", "file-000.parquet is a folder or a device", pipe(f"store/{TABLE}")),
    Case("data label store --success all", "info.json is no file", pipe("store/meta/info.json")),
    Case("data check nowhere", "There is no nowhere"),
    Case("data check .", "is no data set itself, but old in it is"),
    Case("data check /dev/null", "/dev/null holds no episodes"),
    Case(f"data check {'x' * 300}", "File name too long"),
    Case("data check pipe", "pipe holds no episodes", pipe("pipe")),
    Case("data check theirs", "theirs holds no episodes", pipe("theirs/meta/info.json")),
    Case("data check theirs", "file-000.parquet is a folder or a device", pipe(f"theirs/{TABLE}")),
    Case("data check theirs", "a folder or a device", pipe("theirs/meta/episodes/chunk-000/file-000.parquet")),
    Case("data check old", "episodes.jsonl is no file but a pipe", pipe("old/meta/episodes.jsonl")),
    Case("data check videos", "file-000.mp4 is no file but a pipe", pipe(f"videos/{VIDEO}")),
    Case("data import videos out", "file-000.mp4 is no file but a pipe", pipe(f"videos/{VIDEO}")),
    Case("data check demos.hdf5", "demos.hdf5 is damaged or truncated",
         lambda root: (root / "demos.hdf5").write_bytes((root / "demos.hdf5").read_bytes()[:3000])),
    Case("data import theirs theirs/out", "theirs/out lies in the data set itself"),
    Case("data import theirs store", "store is there already"),
    Case("data import theirs demos.hdf5", "demos.hdf5 is there already"),
    Case("data import theirs demos.hdf5/out", "Not a directory: demos.hdf5"),
    Case("data import theirs out", "out is there already", lambda root: (root / "out").symlink_to("nowhere")),
    Case("data import theirs out", "out", loop("out")),
    Case("data import theirs out", ".out.importing", text(".out.importing", "mine")),
    Case(f"data import theirs out --image-size {'9' * 20} 5", "choose sides of 1 to 8192"),
    Case(f"data import theirs out --fps {'9' * 40}", "--fps is 9999"),
    Case("data import theirs out --success-threshold nan", "it must be a finite number"),
    Case("view nowhere", "There is no episode store in nowhere"),
    Case("view demos.hdf5", "demos.hdf5 is an HDF5 file"),
    Case("view pipe", "There is no episode store in pipe", pipe("pipe")),
    Case("view store", "info.json is no file", pipe("store/meta/info.json")),
    Case("view store --port -1", "--port is -1"),
    Case("view store --host 999.1.1.1 --port 0", "No page can be served at 999.1.1.1:0"),
    Case("view store --run nowhere", "nowhere holds no world model with a reward model"),
    Case("view store --device nonsense", "There is no device 'nonsense'"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n].command[:60]} {n}")
def test_bad_input_is_refused(number: int, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[number]
    case.damage(given)
    assert case.words in refused(shlex.split(case.command), given, capsys)


def test_a_port_that_is_taken(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = refused(["view", "store", "--port", str(taken.getsockname()[1])], given, capsys)
    assert "No page can be served at 127.0.0.1" in words and "choose another --port" in words


READ_ONLY = {
    "data label store --success none": "Permission denied",
    "data label unlabelled --success model --device cpu": "unlabelled can't be labelled: Permission denied",
    "data import theirs out": "Permission denied",
}


@pytest.mark.parametrize("command", READ_ONLY)
def test_a_folder_that_may_not_be_written(
    command: str, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before a model is trained whose labels could not be kept."""
    monkeypatch.setattr(labelling, "train", lambda *_: pytest.fail("the work was done first"))

    def unlabelled(given: Path) -> None:
        by_hand(make_store(given / "unlabelled", [lit(n) for n in range(12)]), range(8))

    with seen_by_nobody(whole, 0o555, 0o444, unlabelled) as place:
        before = digests(place)
        capsys.readouterr()
        assert main(command.split()) == 2
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1 and READ_ONLY[command] in complaint
        assert digests(place) == before


def test_a_store_that_is_being_written_is_waited_for(given: Path) -> None:
    began, held = threading.Event(), 0.0

    def writing() -> None:
        nonlocal held
        with file_lock(given / "store/.lock"):
            began.set()
            time.sleep(1)
            held = time.monotonic()

    writer = threading.Thread(target=writing)
    writer.start()
    began.wait()
    assert main(["data", "label", "store", "--success", "none"]) == 0
    assert held and time.monotonic() >= held
    writer.join()
    assert not any(row.succeeded for row in EpisodeStore.open(given / "store").records())


def test_a_store_that_is_appended_to_meanwhile_loses_nothing(
    given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading it and labelling it: the sentence says so, and once more it goes well."""
    open_store, late = EpisodeStore.open.__func__, [make_episode(3, 4, (2,))]  # type: ignore[attr-defined]

    def opened(cls: type[EpisodeStore], root: Path) -> EpisodeStore:
        store: EpisodeStore = open_store(cls, root)
        while late:
            open_store(cls, root).append([late.pop()])
        return store

    monkeypatch.setattr(EpisodeStore, "open", classmethod(opened))
    text("labels.csv", HEAD + "0,1,2\n")(given)
    assert main(LABEL.split()) == 2 and "has been changed meanwhile" in capsys.readouterr().err
    assert [row.succeeded for row in EpisodeStore.open(given / "store").records()] == [False, True, False, True]
    assert main(LABEL.split()) == 0
    assert [row.succeeded for row in EpisodeStore.open(given / "store").records()] == [True, True, False, True]


def test_a_person_labels_while_a_model_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All files of the store are new then. Neither the training is lost nor what the person says."""
    root = make_store(tmp_path / "store", [lit(n) for n in range(14)]).root
    by_hand(EpisodeStore.open(root), range(10))
    train, done = labelling.train, []

    def interrupted(*args: object) -> object:
        model = train(*args)  # type: ignore[arg-type]
        if not done:
            EpisodeStore.open(root).relabel({10: np.arange(9) >= 1, 11: np.zeros(9, bool)})
        done.append(model)
        return model

    monkeypatch.setattr(labelling, "train", interrupted)
    assert main(["data", "label", str(root), "--success", "model", *QUICK]) == 0, capsys.readouterr().err
    store = EpisodeStore.open(root)
    assert [row.by for row in store.records()] == ["person"] * 12 + ["model"] * 2
    assert store.episode(10).success.tolist() == [False] + [True] * 8 and not store.records()[11].succeeded


def test_labels_of_a_model_are_kept_though_a_person_labels_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, relabel, others = make_store(tmp_path / "store", [lit(n) for n in range(3)]), EpisodeStore.relabel, [0, 1]
    labels = Labels(2, 2, Quality(1, 1, 1, 1), {n: np.zeros(9, bool) for n in range(3)}, dict.fromkeys(range(3), 0.2))

    def late(self: EpisodeStore, *args: object) -> None:
        if self is store and others:
            relabel(EpisodeStore.open(store.root), {others.pop(): np.ones(9, bool)})
        relabel(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(EpisodeStore, "relabel", late)
    keep(store, labels)
    assert [row.by for row in EpisodeStore.open(store.root).records()] == ["person", "person", "model"]


def test_a_full_disk_while_labels_are_written(
    given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("wmpo.data.parts.pq.write_table", full)
        words = refused(["data", "label", "store", "--success", "none"], given, capsys)
    assert "No space left on device" in words and "they are as before" in words
    assert main(["data", "label", "store", "--success", "none"]) == 0
