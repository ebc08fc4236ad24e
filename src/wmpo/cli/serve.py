"""`wmpo serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from wmpo.errors import UserError, require_between, require_package, require_temperature

PORTS = {"vla-eval": 8000, "lerobot": 8080}  # what their clients expect


@dataclass(frozen=True)
class ServeCommand:
    """Let programs of others ask a policy for actions: vla-eval's benchmarks, or LeRobot's robot client.

    Where the policy names a class of yours, add --allow module:Class.
    """

    policy: tyro.conf.Positional[Path]
    """Folder of the policy, such as runs/place-seed0/policies/base."""
    protocol: Literal["vla-eval", "lerobot"]
    """vla-eval: a model server for its harness. lerobot: LeRobot's asynchronous inference, for its robot client."""
    cameras: tuple[str, ...] = ()
    """What the policy's cameras are called at the client, each as OWN=THEIRS; without it the names are equal."""
    convention: Literal["plain", "libero"] = "plain"
    """What vla-eval's benchmark means by its numbers. plain: the same as the policy. libero: pictures, states and
    actions of its LIBERO become those of --env.family libero, cameras too where --cameras is not given."""
    instruction: str = ""
    """What the policy is told where the client names no task."""
    temperature: float = 0.0
    """Sampling temperature; 0 is the greedy choice."""
    seed: int = 0
    """Of the random numbers of each episode, where the policy needs some."""
    host: str = "127.0.0.1"
    """Where to listen: only this machine, or 0.0.0.0 for all that reach it; neither protocol knows passwords."""
    port: int | None = None
    """8000 for vla-eval and 8080 for lerobot without it; 0: any that is free."""
    device: str = "auto"
    """auto: a GPU where there is one."""

    def execute(self) -> None:
        from wmpo.opening import pick_device
        from wmpo.policies import load_policy
        from wmpo.serving.actor import Actor
        from wmpo.serving.libero import CAMERAS
        from wmpo.web.server import HERE

        port = PORTS[self.protocol] if self.port is None else self.port
        require_between("--port", port, 0, 65535)
        require_between("--seed", self.seed, 0, 2**32 - 1)
        require_temperature("--temperature", self.temperature)
        package = {"vla-eval": "vla_eval", "lerobot": "grpc"}[self.protocol]
        require_package(f"--protocol is {self.protocol}", package, f"serve-{self.protocol}")
        if self.protocol == "lerobot" and self.convention != "plain":
            raise UserError(f"--convention {self.convention} is of vla-eval's benchmarks: leave it away for lerobot.")
        policy = load_policy(self.policy).to(pick_device(self.device))
        own = getattr(getattr(policy, "config", None), "cameras", ())
        theirs = self.cameras
        if self.convention == "libero" and not theirs:
            theirs = tuple(f"{name}={CAMERAS[name]}" for name in own or CAMERAS if name in CAMERAS)
        actor = Actor(policy, self.policy, theirs, self.instruction, self.temperature)
        if self.host not in HERE:
            tell("Whoever reaches this machine can ask for actions: neither protocol knows passwords.")
        if self.protocol == "vla-eval":
            from wmpo.serving.vla_eval import CONVENTIONS, serve

            serve(actor, CONVENTIONS[self.convention], self.host, port, self.seed, tell)
        else:
            from wmpo.serving.lerobot import serve as serve_lerobot

            serve_lerobot(actor, self.host, port, self.seed, tell)


def tell(line: str) -> None:
    print(line, flush=True)
