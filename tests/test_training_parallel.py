"""Shares of a batch: every row once, answers in order, and at the same time where there are cores."""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from wmpo.batches import split
from wmpo.training.parallel import accumulate_gradients, cores, parallel_map, workers
from wmpo.types import Observation


@dataclass(frozen=True)
class Nested:
    observation: Observation
    pair: tuple[Tensor, Tensor]
    names: tuple[str, ...]
    more: dict[str, Tensor]


def nested(rows: int) -> Nested:
    number = torch.arange(rows)
    names = tuple(f"row {i}" for i in range(rows))
    images = {"front": number.view(-1, 1, 1, 1), "wrist": 10 * number.view(-1, 1, 1, 1)}
    observation = Observation(images, torch.stack([number, -number], 1), names)
    return Nested(observation, (number + 100, torch.zeros(rows, 0)), names, {"more": number + 200})


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


@pytest.mark.parametrize(("rows", "count", "sizes"), [(7, 3, [2, 2, 3]), (8, 2, [4, 4]), (5, 1, [5]), (2, 4, [1, 1])])
def test_every_row_is_in_one_share_and_in_order(rows: int, count: int, sizes: list[int]) -> None:
    batch, parts = nested(rows), split(nested(rows), count)
    assert [len(part.names) for part in parts] == sizes
    assert all(isinstance(part, Nested) and isinstance(part.observation, Observation) for part in parts)
    assert all(len(part.pair) == 2 for part in parts)
    for part in parts:
        lengths = {len(part.observation.state), len(part.observation.instruction), len(part.more["more"])}
        assert lengths | {len(tensor) for tensor in part.pair} == {len(part.names)}
    for camera, image in batch.observation.images.items():
        assert torch.equal(torch.cat([part.observation.images[camera] for part in parts]), image)
    assert torch.equal(torch.cat([part.observation.state for part in parts]), batch.observation.state)
    assert torch.equal(torch.cat([part.pair[0] for part in parts]), batch.pair[0])
    assert torch.equal(torch.cat([part.more["more"] for part in parts]), batch.more["more"])
    assert sum((part.names for part in parts), ()) == batch.names
    assert sum((part.observation.instruction for part in parts), ()) == batch.names


def test_answers_keep_the_order_of_the_questions(two_cores: None) -> None:
    def slower_first(number: int, factor: int) -> int:
        time.sleep((5 - number) / 100)
        return number * factor

    assert parallel_map(slower_first, range(5), [3] * 5) == [0, 3, 6, 9, 12]
    with pytest.raises(ValueError, match="shorter"):
        parallel_map(slower_first, [1, 2], [1])


def test_with_two_cores_two_work_at_once_and_on_one_each(two_cores: None) -> None:
    meeting = threading.Barrier(2, timeout=60)  # breaks unless two are there at the same time

    def meet(number: int) -> tuple[int, int]:
        meeting.wait()
        return number, torch.get_num_threads()

    before = torch.get_num_threads()
    workers.cache_clear()
    parallel_map(lambda _: meeting.wait(), range(2))
    torch.set_num_threads(2)  # what the caller says of its own operations later on is not for them
    try:
        assert parallel_map(meet, range(4)) == [(number, 1) for number in range(4)]
        assert torch.get_num_threads() == 2  # nor is what they say for the caller
    finally:
        torch.set_num_threads(before)


def test_with_one_core_the_caller_works_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = threading.get_ident()
    assert parallel_map(lambda _: threading.get_ident(), range(3)) == [here] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() >= 1


@pytest.mark.parametrize("cores", ["1", "2", "8"])
def test_gradients_are_weighed_and_added(cores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    used, half_used, unused = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 0.0])
    grads = {"a": (one, None, None), "b": (two, two, None), "c": (one, one, None)}
    number = {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "c": torch.tensor(3.0)}
    told = accumulate_gradients(
        [used, half_used, unused], lambda key: (grads[key], {"number": number[key]}), [0.25, 0.5, 0.25], grads
    )
    assert told == {"number": 2.0}
    assert used.grad is not None and used.grad.tolist() == [5.5, 1.0]
    assert half_used.grad is not None and half_used.grad.tolist() == [5.25, 0.5]
    assert unused.grad is None and one.tolist() == [1.0, 2.0]  # what was given is not written to


def test_gradients_of_no_more_parts_are_held_than_are_worked_on(two_cores: None) -> None:
    parameter, held = torch.nn.Parameter(torch.zeros(2)), weakref.WeakSet[Tensor]()
    most = 0

    def gradient(part: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        nonlocal most
        most = max(most, len(held))
        grad = torch.ones(2)
        held.add(grad)
        return [grad], {}

    accumulate_gradients([parameter], gradient, [0.1] * 10, range(10))
    assert most <= 1  # beside the one that is being made


def test_what_goes_wrong_in_a_share_is_told(two_cores: None) -> None:
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda number: 1 / number, [1, 0])
