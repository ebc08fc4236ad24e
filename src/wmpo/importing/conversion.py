"""What is taken of a source, and how: cameras, sizes, frames per second, state, action, success."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from PIL import Image

from wmpo.data.info import check_spec
from wmpo.data.records import UNLABELLED, without_label
from wmpo.errors import UserError, named
from wmpo.importing.source import Column, Source
from wmpo.importing.success import Judge, judge_of
from wmpo.io.plain import Between, check_ranges
from wmpo.types import EnvSpec, Episode

NOTHING = "none"
UNKNOWN = (
    "nobody says it, so episodes are stored without labels: they can be imitated and teach a world model, but no "
    "reward model, and so no practice, until `wmpo data label` has said it"
)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The options of `wmpo data import`."""

    cameras: tuple[str, ...] = ()
    """Which ones, in this order; the reward model watches the first. NAME=NEW renames. Without it: all."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels that all pictures are brought to, with antialiasing; their shape follows. Without it
    they stay as they are."""
    fps: Annotated[int, Between(0, 1000)] = 0
    """Frames and actions per second, of which the recorded rate is a multiple; 0: as recorded."""
    state: tuple[str, ...] = ()
    """Columns that make the state, one after the other; "none": there is none. Without it: the usual one, if any."""
    action: tuple[str, ...] = ()
    """Columns that make the action. Without it: the usual one."""
    action_space: Literal["recorded", "absolute", "delta"] = "recorded"
    """What an action is: a target (absolute), or a change (delta). recorded: what the format says, targets for
    LeRobot. With --fps, of targets the last one counts, and changes become one."""
    except_dims: tuple[int, ...] = ()
    """Dimensions of the action that are of the other kind, counted from 0; the gripper of a delta action, for
    example."""
    merge_deltas: Literal["sum", "mean"] = "sum"
    """What several changes become, with --fps: their sum, or their mean, for an environment that repeats each action
    for as many steps of its controller (libero, mimicgen and robosuite do)."""
    rollouts_of: str = ""
    """Name of the policy that acted. Without it the episodes are demonstrations."""
    instruction: str = ""
    """One sentence for all episodes, in place of their own."""
    success: str = ""
    """What succeeded: the name of a column; a file that ends in .csv, with the columns episode_index, success and maybe
    frame; all; none. Without it: the column success or next.success, else nothing is labelled."""
    success_threshold: float = 0.0
    """Above it, a number in that column means success."""
    success_frames: Annotated[int, Between(1, 1000000)] = 5
    """So many frames at the end show success, where no column and no frame say when it was reached."""
    copy: bool = False
    """Copy videos that would be read in place, as they are; for a store that is to work without the data set."""
    horizon: Annotated[int, Between(0, 1000000)] = 0
    """Longest episode of the task, in actions; 0: the longest of these. An environment that goes on with the store must
    have the same."""


@dataclass(frozen=True)
class Plan:
    """Choices that fit a source."""

    source: Source
    spec: EnvSpec
    cameras: Mapping[str, str]
    """Name in the store -> name in the source."""
    stride: int
    action: tuple[str, ...]
    state: tuple[str, ...]
    changes: np.ndarray  # (D,) bool: dimensions that are changes
    judge: Judge
    choices: Choices

    def __len__(self) -> int:
        return len(self.source.facts.episodes)

    def meaning(self) -> list[str]:
        """What will be made, in lines for a person."""
        renamed = {new: f"{old} as {new}" if new != old else old for new, old in self.cameras.items()}
        cameras = [f"{renamed[new]} {size[0]}x{size[1]}" for new, size in self.spec.cameras.items()]
        kinds = ["change" if change else "target" for change in self.changes.tolist()]
        kind = f"{kinds[0]}s" if len(set(kinds)) == 1 else ", ".join(kinds)
        who = self.choices.rollouts_of and f"rollouts of {self.choices.rollouts_of}"
        judged = bool(self.judge.column) or self.judge.verdicts is not None
        return [
            f"episodes  {len(self)}, {who or 'demonstrations'}",
            f"frames    {self.spec.fps} of {self.source.facts.fps:g} a second",
            f"cameras   {', '.join(cameras)}",
            f"action    {', '.join(self.action)}, {self.spec.action_dim}: {kind}",
            f"state     {', '.join(self.state) or 'none'}, {self.spec.state_dim}",
            f"success   {(self.choices.success or self.judge.column) if judged else UNKNOWN}",
        ]

    def check(self) -> None:
        """Reads all numbers that will be taken, and the heads of videos: what is damaged is told before the long
        work."""
        self.source.check([*self.cameras.values()])
        labels = [self.source.facts.labels] if self._labels else []
        for number in range(len(self)):
            self.source.columns(number, [*self.action, *self.state, *labels])
            self.judge(self.source, number, self.stride)

    def episode(self, number: int, in_place: Collection[str] = ()) -> Episode:
        """One episode as the store takes it, without the pictures of cameras that are read `in_place`; the only one in
        memory."""
        facts, about = self.source.facts, self.source.facts.episodes[number]
        # Counted from the end, which shows what came of it; up to stride - 1 frames of the beginning are left out.
        kept = np.arange(about.actions % self.stride, about.actions + 1, self.stride)
        columns = self.source.columns(number, [*self.action, *self.state])
        success = self.judge(self.source, number, self.stride)
        labels = self._chunks(self.source.columns(number, [facts.labels])[facts.labels], kept) if self._labels else None
        actions = self._chunks(np.concatenate([columns[name] for name in self.action], axis=1), kept)
        state = np.concatenate([np.zeros((about.frames, 0)), *(columns[name] for name in self.state)], axis=1)
        images = {
            name: np.stack(list(self._pictures(number, camera, kept, self.spec.cameras[name])))
            for name, camera in self.cameras.items()
            if name not in in_place
        }
        shown = np.zeros(len(kept), bool)
        if success is not None:  # of the frames between two that are kept, the later one speaks
            begins = np.concatenate([[0], kept[:-1] + 1])
            shown = np.logical_or.reduceat(success[: kept[-1] + 1], begins)
        return Episode(
            images=images,
            state=state[kept].astype(np.float32),
            actions=actions,
            success=shown,
            instruction=self.choices.instruction or about.instruction,
            initial_state=about.initial_state,
            task=about.task or self.choices.instruction or about.instruction,
            source=self.choices.rollouts_of or about.source or "expert",
            meta=without_label(about.meta) | (UNLABELLED if success is None else self.judge.by(facts, about.meta)),
            labels=None if labels is None or np.array_equal(labels, actions) else labels,
        )

    @property
    def _labels(self) -> bool:
        return bool(self.source.facts.labels) and self.action == self.source.facts.action

    def _chunks(self, actions: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """(T, D) float32 between the kept frames: the sum or mean of changes, the last target."""
        steps = actions[kept[0] : kept[-1]].reshape(len(kept) - 1, self.stride, -1)
        merged = steps.mean(1) if self.choices.merge_deltas == "mean" else steps.sum(1)
        return np.where(self.changes, merged, steps[:, -1]).astype(np.float32)

    def _pictures(self, number: int, camera: str, kept: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
        for image in self.source.frames(number, camera, kept.tolist()):
            yield image if image.shape[:2] == size else resized(image, size)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 of another size; Pillow's filters reach as far as the reduction asks for."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def plan_import(source: Source, choices: Choices) -> Plan:
    """Raises UserError for a choice that doesn't fit the source."""
    facts = source.facts
    check_ranges(choices, "--")
    cameras: dict[str, str] = {}
    for word in choices.cameras or facts.cameras:
        name, _, new = word.partition("=") if word not in facts.cameras else (word, "", "")
        named("camera", name, facts.cameras)
        if (new or name) in cameras:
            raise UserError(f"--cameras names {new or name} twice: give each camera a name of its own, as NAME=NEW.")
        cameras[new or name] = name
    size = choices.image_size
    sizes = {new: (size[0], size[1]) if size else facts.cameras[name] for new, name in cameras.items()}
    action = _chosen(facts.columns, choices.action or facts.action, "action")
    state = () if choices.state == (NOTHING,) else _chosen(facts.columns, choices.state or facts.state, "state")
    if not action:
        raise UserError(f"{source.path} has no usual action: name one of its columns, {', '.join(facts.columns)}.")
    dimensions = sum(facts.columns[name].size for name in action)
    usual = action == facts.action
    delta = {"recorded": facts.delta and usual, "absolute": False, "delta": True}[choices.action_space]
    others = choices.except_dims
    if choices.action_space == "recorded" and delta and not others:
        others = facts.absolute
    if wrong := [place for place in others if not 0 <= place < dimensions]:
        raise UserError(f"--except-dims names dimension {wrong[0]}: the action has 0 to {dimensions - 1}.")
    if choices.rollouts_of in ("expert", "demonstration"):
        raise UserError("--rollouts-of names the policy that acted: leave it out for demonstrations.")
    if choices.instruction and not choices.instruction.strip():
        raise UserError("--instruction is blank: give a sentence, or leave it out.")
    fps = max(round(facts.fps), 1)
    stride = stride_to(fps, choices.fps)
    longest = max(about.actions // stride for about in facts.episodes)
    if short := [n for n, about in enumerate(facts.episodes) if about.actions < stride]:
        raise UserError(f"Episode {short[0]} of {source.path} is too short for --fps {choices.fps}.")
    if choices.horizon and choices.horizon < longest:
        raise UserError(f"--horizon is {choices.horizon}, but there are episodes of {longest} actions.")
    spec = EnvSpec(
        sizes, sum(facts.columns[name].size for name in state), dimensions, choices.horizon or longest, fps // stride
    )
    check_spec(spec, str(source.path))
    judge = judge_of(facts, choices.success, choices.success_threshold, choices.success_frames)
    changes = np.isin(np.arange(dimensions), others) != delta
    return Plan(source, spec, cameras, stride, action, state, changes, judge, choices)


def stride_to(recorded: int, wanted: int) -> int:
    """How many recorded frames one step takes."""
    if not wanted:
        return 1
    if wanted > recorded or recorded % wanted:
        rates = ", ".join(str(recorded // n) for n in range(1, recorded + 1) if recorded % n == 0)
        raise UserError(f"--fps {wanted} does not divide the recorded {recorded}: choose one of {rates}.")
    return recorded // wanted


def _chosen(columns: Mapping[str, Column], names: Sequence[str], kind: str) -> tuple[str, ...]:
    for name in names:
        named(f"column for the {kind}", name, columns)
    return tuple(names)
