from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from episodes_by_hand import SPEC, make_episode, make_store
from wmpo.batches import cat
from wmpo.data import cache as cache_module
from wmpo.data import video
from wmpo.data.cache import FrameCache
from wmpo.data.clips import ImitationFrames, RewardClips, VideoClips, moved
from wmpo.data.store import EpisodeStore
from wmpo.errors import UserError

LENGTHS = (2, 6, 9)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    """Three failures of 2, 6 and 9 actions, then a success of 12 declared at frame 8."""
    episodes = [make_episode(i, length, labels=i == 1) for i, length in enumerate(LENGTHS)]
    episodes.append(make_episode(3, 12, success=(8, 9, 10, 11, 12)))
    return FrameCache(make_store(tmp_path_factory.mktemp("store"), episodes))


def where(image: torch.Tensor) -> np.ndarray:
    """(..., C, H, W) -> (..., 2): which episode and which frame, read off the pixels."""
    assert image.dtype == torch.uint8
    return image[..., :2, 0, 0].numpy().astype(int)


def test_video_clips(cache: FrameCache) -> None:
    batch = VideoClips(cache, [0, 1, 2], context=3, chunk=4).sample(400, seed=1, step=0)
    assert batch.context["front"].shape == (400, 3, 3, 16, 24)
    assert batch.future["wrist"].shape == (400, 4, 3, 8, 8)
    assert (batch.action.shape, batch.state.shape) == ((400, 4, 3), (400, 5, 2))
    assert (batch.first_state.shape, batch.travel.shape) == ((400, 2), (400, 3))
    for camera in SPEC.cameras:
        context, future = where(batch.context[camera]), where(batch.future[camera])
        episode, now = context[:, -1].T
        # Episode 0 is too short for a chunk; the others offer frames 0..2 and 0..5, all equally often.
        moments, counts = np.unique(np.stack([episode, now]), axis=1, return_counts=True)
        assert moments.T.tolist() == [[1, t] for t in range(3)] + [[2, t] for t in range(6)]
        assert counts.min() > 20 and counts.max() < 80
        for k in range(3):
            assert np.array_equal(context[:, k, 1], np.maximum(now - 2 + k, 0))
        for k in range(4):
            assert np.array_equal(future[:, k, 1], now + 1 + k)
            assert np.allclose(batch.action[:, k, 0], episode + (now + k) / 100)
        for k in range(5):
            assert np.allclose(batch.state[:, k, 1], episode + (now + k) / 100)
        assert np.allclose(batch.first_state[:, 1], episode)
        assert (context[..., 0] == episode[:, None]).all() and (future[..., 0] == episode[:, None]).all()
        assert np.array_equal(where(batch.anchor[camera]), np.stack([episode, 0 * now], 1))


def test_travel_is_the_sum_of_the_actions_so_far(tmp_path: Path) -> None:
    """The episode's own actions up to now, however many were stored before it."""
    dice = np.random.default_rng(0)
    episodes = [make_episode(i, 5 + i) for i in range(4)]
    for episode in episodes:
        episode.actions[:] = dice.normal(size=episode.actions.shape)
    cache = FrameCache(make_store(tmp_path, episodes))
    batch = VideoClips(cache, [1, 3], context=2, chunk=3).sample(100, seed=0, step=0)
    episode, now = where(batch.context["front"])[:, -1].T
    assert set(episode) == {1, 3} and set(now) == set(range(6))
    expected = [episodes[e].actions[:t].sum(0) for e, t in zip(episode, now, strict=True)]
    assert np.allclose(batch.travel, expected, atol=1e-5)
    assert batch.travel.dtype == torch.float32 and not batch.travel[torch.from_numpy(now == 0)].any()


def test_the_whole_image_is_right(cache: FrameCache) -> None:
    batch = VideoClips(cache, [2], context=1, chunk=2).sample(8, seed=0, step=0)
    given = make_episode(2, 9).images["front"]
    for image, (_, frame) in zip(batch.future["front"][:, 1], where(batch.future["front"][:, 1]), strict=True):
        assert np.array_equal(image.numpy().transpose(1, 2, 0), given[frame])


def test_batches_depend_on_seed_and_step_alone(cache: FrameCache) -> None:
    def fingerprint(sampler: VideoClips, seed: int, step: int) -> list[int]:
        return where(sampler.sample(32, seed, step).context["front"])[..., 1].ravel().tolist()

    one, two = VideoClips(cache, [1, 2], 2, 2), VideoClips(cache, [2, 1], 2, 2)
    first = fingerprint(one, 3, 5)
    fingerprint(one, 3, 6)
    assert fingerprint(two, 3, 5) == fingerprint(one, 3, 5) == first
    assert first != fingerprint(one, 3, 6) != fingerprint(one, 4, 5)


def test_video_batches_join(cache: FrameCache) -> None:
    parts = [VideoClips(cache, [i], 2, 2).sample(n, 0, 0) for i, n in ((1, 3), (2, 5))]
    batch = cat(parts)
    assert where(batch.anchor["wrist"])[:, 0].tolist() == [1] * 3 + [2] * 5
    assert len(batch.context["front"]) == len(batch.future["front"]) == 8
    for name in ("action", "state", "first_state", "travel"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts]))


def test_reward_clips(cache: FrameCache) -> None:
    sampler = RewardClips(cache, [0, 1, 2, 3], clip_length=4, hard_share=0.0)
    batch = sampler.sample(1000, seed=0, step=0)
    assert batch.clips.shape == (1000, 4, 3, 16, 24)
    assert batch.label.tolist() == [1.0] * 500 + [0.0] * 500
    seen = where(batch.clips)
    episode, last = seen[:, -1].T
    for k in range(4):  # before frame 0 there is only frame 0
        assert np.array_equal(seen[:, k, 1], np.maximum(last - 3 + k, 0))
    assert (seen[..., 0] == episode[:, None]).all()
    assert {(e, t) for e, t in zip(episode[:500], last[:500], strict=True)} == {(3, t) for t in range(8, 13)}
    quiet = {(e, t) for e, length in enumerate(LENGTHS) for t in range(length + 1)} | {(3, t) for t in range(6)}
    assert {(e, t) for e, t in zip(episode[500:], last[500:], strict=True)} == quiet
    assert batch.instruction == tuple(f"push block {e % 2}" for e in episode)


def test_hard_negatives_end_late(cache: FrameCache) -> None:
    batch = RewardClips(cache, [0, 1, 2, 3], clip_length=2, hard_share=1.0).sample(400, seed=0, step=0)
    episode, last = where(batch.clips)[200:, -1].T
    # The last third of 3, 7, 10 frames, and of the 6 that end 3 or more before the first success.
    assert {(e, t) for e, t in zip(episode, last, strict=True)} == {
        *[(0, 2)],
        *[(1, t) for t in (4, 5, 6)],
        *[(2, t) for t in (6, 7, 8, 9)],
        *[(3, t) for t in (4, 5)],
    }
    half = RewardClips(cache, [1, 3], clip_length=2, hard_share=0.5).sample(401, seed=0, step=0)
    assert half.label.sum() == 201
    episode, last = where(half.clips)[-100:, -1].T
    assert (last >= 4).all()


def test_reward_clips_need_both_kinds(cache: FrameCache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="None of the 3 episodes to learn from succeeds"):
        RewardClips(cache, [0, 1, 2], 4)
    at_once = FrameCache(make_store(tmp_path, [make_episode(0, 3, success=(1, 2, 3))]))
    with pytest.raises(UserError, match="no clip without success"):
        RewardClips(at_once, [0], 4)


def test_imitation_frames(cache: FrameCache) -> None:
    batch = ImitationFrames(cache, [0, 1], chunk=4).sample(300, seed=0, step=0)
    episode, now = where(batch.observation.images["front"]).T
    assert {(e, t) for e, t in zip(episode, now, strict=True)} == {(e, t) for e in (0, 1) for t in range(LENGTHS[e])}
    length = np.array(LENGTHS)[episode]
    sign = np.where(episode == 1, -1, 1)  # episode 1 was labelled with minus its actions
    for k in range(4):
        assert np.array_equal(batch.mask[:, k].numpy(), now + k < length)
        target = sign * (episode + np.minimum(now + k, length - 1) / 100)
        assert np.allclose(batch.action[:, k, 2], target)
    assert np.allclose(batch.observation.state[:, 0], episode + now / 100)
    assert batch.observation.instruction == tuple(f"push block {e % 2}" for e in episode)


def test_shifted_images_keep_their_labels(cache: FrameCache) -> None:
    frames = np.arange(2 * 3 * 6 * 6, dtype=np.uint8).reshape(2, 3, 6, 6)
    seen = set()
    for seed in range(60):
        shifted = moved(frames[:, None], 1, np.random.default_rng(seed))[:, 0]
        for before, after in zip(frames, shifted, strict=True):
            shifts = [
                (down, right)
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
                if np.array_equal(np.roll(before, (down, right), (1, 2))[:, 1:-1, 1:-1], after[:, 1:-1, 1:-1])
            ]
            assert len(shifts) == 1
            seen |= set(shifts)
        assert shifted.dtype == np.uint8
    assert len(seen) == 9
    edge = moved(frames[:1, None], 1, np.random.default_rng(next(s for s in range(99) if _right_of(s))))[:, 0]
    assert np.array_equal(edge[..., 0], edge[..., 1])  # what comes in at the left repeats the edge
    plain, shifted = (ImitationFrames(cache, [0, 1], 2, shift=shift).sample(8, 0, 0) for shift in (0, 2))
    assert torch.equal(plain.action, shifted.action)


def _right_of(seed: int) -> bool:
    """Whether this seed moves one image to the right."""
    return bool(np.random.default_rng(seed).integers(-1, 2, (2, 1, 1))[0, 0, 0] == 1)


def test_no_episodes(cache: FrameCache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No episodes"):
        VideoClips(cache, [], 2, 2)
    with pytest.raises(UserError, match="There is no episode 4"):
        ImitationFrames(cache, [1, 4], 2)
    with pytest.raises(UserError, match="10 actions of one chunk"):
        VideoClips(cache, [0, 1, 2], 2, 10)
    with pytest.raises(UserError, match="empty"):
        FrameCache(EpisodeStore.create(tmp_path, SPEC))


def test_the_cache_grows_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "BLOCK_BYTES", 3 * (3 * 16 * 24))  # several blocks per part
    store = make_store(tmp_path, [make_episode(0, 4), make_episode(1, 5)])
    decoded: list[int] = []
    blocks = video.Video.blocks

    def counted(self: video.Video) -> Iterator[np.ndarray]:
        decoded.append(int(self.path.stem.removeprefix("file-")))
        return blocks(self)

    monkeypatch.setattr(video.Video, "blocks", counted)

    def check(cache: FrameCache, numbers: list[int], lengths: list[int], expected: list[int]) -> None:
        images = [make_episode(i, n).images["front"] for i, n in zip(numbers, lengths, strict=True)]
        assert np.array_equal(cache.images["front"].transpose(0, 2, 3, 1), np.concatenate(images))
        assert sorted(set(decoded)) == expected
        decoded.clear()

    old = FrameCache(store)
    check(old, [0, 1], [4, 5], [0])
    check(FrameCache(store), [0, 1], [4, 5], [])
    store.append([make_episode(2, 6)])
    check(old, [0, 1], [4, 5], [])  # what was opened before stays as it is
    old.refresh()
    check(old, [0, 1, 2], [4, 5, 6], [1])

    folder = tmp_path / "cache"
    everything = ([0, 1, 2], [4, 5, 6], [0, 1])
    with (folder / "front.rgb").open("r+b") as file:
        file.truncate(1000)
    decoded.clear()
    check(FrameCache(store), *everything)
    (folder / "front.json").write_text("{ nonsense")
    check(FrameCache(store), *everything)
    for path in folder.iterdir():
        path.unlink()
    check(FrameCache(store), *everything)
    os.utime(store.video(0, "front").path, (1, 1))  # another file by the same name
    check(FrameCache(store), *everything)


def test_a_killed_build_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path, [make_episode(0, 4)])
    FrameCache(store)
    store.append([make_episode(1, 5)])
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.json, "dumps", lambda _: 1 / 0)  # after the frames, before the note of them
        with pytest.raises(ZeroDivisionError):
            FrameCache(store)
    assert np.array_equal(FrameCache(store).images["wrist"][5:, 1, 0, 0], np.arange(6))
