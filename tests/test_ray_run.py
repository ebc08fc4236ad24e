"""A whole run of place on two Ray nodes, of which one is killed, and an actor: what one process makes, bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from test_ranks import PLACE, weights
from wmpo.cli import main
from wmpo.data.store import EpisodeStore
from wmpo.training import actors
from wmpo.training.log import read_metrics

pytest.importorskip("ray")

from test_ray import process_of, wait_for_both  # which needs it


def outcomes(folder: Path) -> dict[tuple[str, int], tuple[int, bool]]:
    """Of each evaluated episode."""
    records = EpisodeStore.open(folder / "evaluation").records()
    return {(record.source, record.initial_state): (record.length, record.succeeded) for record in records}


@pytest.mark.slow
def test_a_run_of_place_ends_as_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    options = [*PLACE, "--grpo.shards", "4"]
    one, several = tmp_path / "one", tmp_path / "several"
    assert main([*options, "--out", str(one)]) == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    deal_lent, iterations = actors.deal_lent, 0

    def interrupted(*given: Any) -> Any:
        nonlocal iterations
        iterations += 1
        if iterations < 3:
            wait_for_both()
        if iterations == 1:
            os.kill(actors.ask([(actors.alive()[0], process_of, ())])[0], signal.SIGKILL)
        elif iterations == 2:
            for process in second.all_processes["raylet"]:
                process.process.send_signal(signal.SIGKILL)
        return deal_lent(*given)

    monkeypatch.setattr(actors, "deal_lent", interrupted)
    try:
        assert main([*options, "--ray", cluster.address, "--out", str(several)]) == 0
    finally:
        cluster.shutdown()
    assert iterations == 6  # of practice and its control
    mine, theirs = weights(one), weights(several)
    assert mine.keys() == theirs.keys()
    assert [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])] == []
    assert outcomes(one) == outcomes(several)
    told, seen = (
        {name: values for name, values in read_metrics(folder).items() if "second" not in name}
        for folder in (one, several)
    )
    assert told == seen and sum(groups for _, groups in told["practice-1/groups_kept"]) > 0
