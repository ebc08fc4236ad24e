"""Which videos of a data set a store reads where they lie: those whose pictures stay as they are, with every frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np

from wmpo.data.in_place import SUFFIX, digest, lay
from wmpo.data.layout import video_path
from wmpo.data.recorded import NEAR, damaged, decoding, open_video
from wmpo.data.records import Films
from wmpo.data.video import CODECS, Codec, Film
from wmpo.importing.conversion import Plan


@dataclass(frozen=True)
class Taken:
    """What is read in place of one camera."""

    files: Sequence[Path]
    films: Sequence[Film]
    """Of each file."""
    episodes: Sequence[tuple[int, float]]
    """Of each episode, the number of the file and the second at which it begins there."""


def unchanged(plan: Plan, codec: Codec) -> list[str]:
    """Cameras, by their names in the store, whose pictures stay as they are, in mp4 files; none where videos are to be
    encoded with loss."""
    facts = plan.source.facts
    if plan.stride > 1 or facts.fps != plan.spec.fps or not codec.lossless:
        return []
    return [
        name
        for name, camera in plan.cameras.items()
        if plan.spec.cameras[name] == facts.cameras[camera]
        and all(about.frames == about.actions + 1 for about in facts.episodes)
        and all(film and film[0].suffix.lower() == SUFFIX for film in _films(plan, camera))
    ]


def take_in_place(plan: Plan, codec: Codec) -> dict[str, Taken]:
    """Camera -> what is read in place of it. All packets of the videos are read, none is decoded. Raises UserError
    where one doesn't show what its table says."""
    found = {}
    for name in unchanged(plan, codec):
        shown: dict[Path, list[np.ndarray]] = {}
        places = []
        for about, film in zip(plan.source.facts.episodes, _films(plan, plan.cameras[name]), strict=True):
            path, begin = cast(tuple[Path, float], film)
            shown.setdefault(path, []).append(begin + np.arange(about.frames) / plan.spec.fps)
            places.append((path, begin))
        films = [_film(path, np.sort(np.concatenate(times)), plan.spec.fps) for path, times in shown.items()]
        if all(films):
            numbers = {path: number for number, path in enumerate(shown)}
            episodes = [(numbers[path], begin) for path, begin in places]
            found[name] = Taken([*shown], [*filter(None, films)], episodes)
    return found


def lay_films(folder: Path, taken: Mapping[str, Taken], copy: bool) -> None:
    """Make links to the files in a store that is to be; or copies, see `wmpo.data.in_place.lay`."""
    for camera, one in taken.items():
        for number, file in enumerate(one.files):
            lay(video_path(folder, number, camera), file, copy)


def films_of(taken: Mapping[str, Taken], episode: int) -> Films:
    """Where the pictures of an episode lie."""
    return {camera: one.episodes[episode] for camera, one in taken.items()}


def meaning(plan: Plan, codec: Codec) -> str:
    """What becomes of the videos, in a line for a person."""
    kept = unchanged(plan, codec)
    ways = {"copied as they are" if plan.choices.copy else "read in place": kept}
    ways["encoded without loss" if codec.lossless else "encoded with loss"] = [c for c in plan.cameras if c not in kept]
    return "videos    " + "; ".join(f"{', '.join(cameras)}: {way}" for way, cameras in ways.items() if cameras)


def _films(plan: Plan, camera: str) -> Iterator[tuple[Path, float] | None]:
    return (plan.source.film(number, camera) for number in range(len(plan)))


def _film(path: Path, times: np.ndarray, fps: int) -> Film | None:
    """The file as it is now, which must show a frame at each of these ascending seconds; None where its codec is none
    of those that are read in place."""
    with decoding(path), open_video(path) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context.codec.canonical_name
        if codec not in CODECS:
            return None
        tick = cast(Fraction, stream.time_base)
        packets = (packet for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard)
        shown = np.sort([float(cast(int, packet.pts) * tick) for packet in packets])
    place = np.searchsorted(shown, times - NEAR / fps)
    if (late := place == len(shown)).any():
        raise damaged(path, f"ends before {times[late][0]:.3f} s, where its table has more frames")
    if (none := shown[place] > times + NEAR / fps).any():
        raise damaged(path, f"shows no frame at {times[none][0]:.3f} s, as its table says")
    status = path.stat()
    return Film(codec, status.st_size, status.st_mtime_ns, digest(path, status.st_mtime_ns))
