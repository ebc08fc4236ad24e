"""`wmpo export`: a policy for the program that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class ExportCommand:
    """A policy that began from a published SmolVLA, pi0 or OpenVLA-OFT, as a folder that LeRobot, transformers or
    OpenVLA-OFT's own code opens as it is. Low-rank changes are folded in.

    wmpo export better/policy my-better-smolvla
    """

    policy: tyro.conf.Positional[Path]
    """Folder of the policy, of a run or of a stage."""
    out: tyro.conf.Positional[Path]
    """The folder to make."""
    published: Path | None = None
    """The folder that the policy began from, as it was; needed where it lies elsewhere now."""

    def execute(self) -> None:
        from wmpo.policies import load_policy
        from wmpo.policies.exporting import export

        remark = export(load_policy(self.policy), self.published, self.out)
        size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        print(f"{self.out}: {size / 1e6:.1f} MB")
        if remark:
            print(remark)
