"""Drives a robot in a process of its own: at a fixed rate, within limits, under a watchdog.

`wmpo.envs.robot.env` runs this file by its path, maybe under another Python (3.10 or newer) that has neither wmpo nor
torch: it needs NumPy and the standard library only. Whatever happens to the program that decides, killed or stuck, this
process sees its pipe close, or no command come, and stops the robot. Four threads: this one asks the robot and commands
it, the others listen to the pipe and to signals, watch the clock, and read keys.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import os
import queue
import signal
import socket
import sys
import termios
import threading
import time
import traceback
import tty
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wmpo.envs.robot.protocol import Robot

GRACE = 3.0  # seconds to disconnect in before the process ends anyway
STOP_KEYS, SUCCESS_KEY, FAILURE_KEY = (" ", "\x1b"), "s", "f"
BUILTIN = {
    "lerobot": "lerobot_bridge:LeRobotArm",  # imported from the folder of this file: LeRobot's Python has no wmpo
    "tabletop": "wmpo.envs.robot.simulated:TabletopRobot",
}
FACTS = ("cameras", "state_dim", "action_dim", "horizon", "fps", "instruction", "action_low", "action_high")
COUNTS = ("late_observations", "late_commands", "limited_actions")


def send(connection: Connection, head: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """A message: JSON, and arrays after it. Nothing that is received can execute code."""
    shapes = [(array.dtype.str, array.shape) for array in arrays]
    connection.send_bytes(json.dumps({**head, "arrays": shapes}).encode())
    for array in arrays:
        connection.send_bytes(array.tobytes())


def receive(connection: Connection) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What `send` has sent. Raises EOFError or OSError where the other side has gone."""
    head = json.loads(connection.recv_bytes())
    return head, [np.frombuffer(connection.recv_bytes(), kind).reshape(shape) for kind, shape in head.pop("arrays")]


class StopError(Exception):
    """The robot has been stopped; the text says why."""


class Driver:
    """Answers "reset" and "step" requests. Stopped once, for whatever reason, it answers nothing any more."""

    def __init__(self, robot: Robot, connection: Connection, watchdog: float, success: str, person: bool) -> None:
        self.robot, self.connection, self.success, self.person = robot, connection, success, person
        self.period, self.patience = 1 / robot.fps, watchdog
        low, high, speed = (
            np.broadcast_to(np.asarray(bound, np.float32), (robot.action_dim,))
            for bound in (robot.action_low, robot.action_high, robot.max_speed)
        )
        self.low, self.high, self.change = low, high, speed * np.float32(self.period)
        if not ((low < high).all() and (speed > 0).all() and np.isfinite([low, high, speed]).all()):
            raise StopError("action_low must be below action_high, max_speed above 0, and all of them finite")
        self.requests: queue.Queue[tuple[dict[str, Any], list[np.ndarray]] | None] = queue.Queue()
        self.keys: queue.Queue[str] = queue.Queue()
        self.stopped = ""
        self.ended = threading.Event()  # set when the robot is stopped for good: ends every wait
        self.sending = threading.Lock()
        self.expected: tuple[float, str] | None = None  # when what is waited for is too late, and what it is
        self.due: float | None = None  # when the next command is; None before an episode's first
        self.lapsed = False  # whether it did not come in time
        self.acted = 0.0
        self.counts = dict.fromkeys(COUNTS, 0)
        self.verdict: bool | None = None
        self.last = np.zeros(robot.action_dim, np.float32)

    # Stopping

    def stop(self, why: str) -> None:
        """For good, from any thread: the robot first, then the caller is told, and the process ends soon."""
        with self.sending:
            if self.stopped:
                return
            self.stopped = why
        self.ended.set()
        self.hold()
        timer = threading.Timer(GRACE, os._exit, (1,))  # whatever still hangs then
        timer.daemon = True
        timer.start()
        self.requests.put(None)
        self.keys.put("")
        with contextlib.suppress(OSError), self.sending:
            send(self.connection, {"stopped": why})

    def hold(self) -> None:
        try:
            self.robot.stop()
        except Exception:
            traceback.print_exc()

    @contextlib.contextmanager
    def expect(self, what: str, by: float | None = None) -> Iterator[None]:
        """Within the block the watchdog stops the robot where it takes too long."""
        self.expected = ((by or time.monotonic()) + self.patience, what)
        try:
            yield
        finally:
            self.expected = None

    def watch(self) -> None:
        """The watchdog's thread."""
        while not self.ended.wait(min(self.period, self.patience) / 4):
            expected = self.expected
            if expected and time.monotonic() > expected[0]:
                if expected[1]:
                    self.stop(f"{expected[1]} was more than {self.patience:g} s late (env.watchdog)")
                elif not self.lapsed:  # the episode may be over; if it isn't, the next command comes too late
                    self.lapsed = True
                    self.hold()

    def listen(self, signals: socket.socket) -> None:
        """The thread that reads requests. Signals arrive here too, since the main thread may hang."""
        while not self.ended.is_set():
            try:
                if signals in wait([self.connection, signals]):
                    number = signals.recv(1)[0]
                    self.stop("Ctrl-C" if number == signal.SIGINT else f"signal {signal.Signals(number).name}")
                    return
                self.requests.put(receive(self.connection))
            except (EOFError, OSError):
                self.stop("the program that drives it has ended")

    def read_keys(self) -> None:
        while key := os.read(0, 1).decode("ascii", "replace"):
            if key in STOP_KEYS:
                self.stop("a person has pressed the stop key")
            self.keys.put(key)

    # Driving

    def serve(self) -> None:
        while request := self.requests.get():
            head, arrays = request
            answer, seen = self.reset(head["initial_state"]) if head["op"] == "reset" else self.step(arrays[0])
            self.check()
            images = [np.stack([frame["images"][camera] for frame in seen]) for camera in self.robot.cameras]
            with self.sending:
                send(self.connection, answer, [*images, np.stack([frame["state"] for frame in seen])])
            if self.due is not None:
                self.expected = (self.due + self.patience, "")

    def check(self) -> None:
        if self.stopped:
            self.hold()  # once more: a command may have been under way
            raise StopError(self.stopped)

    def reset(self, initial_state: int) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
        self.expected = self.due = self.verdict = None
        self.lapsed = False
        self.hold()
        self.go_home()
        if hasattr(self.robot, "reset"):
            self.robot.reset(initial_state)
        if self.person:
            self.ask_person(initial_state)
        self.last = self.position()
        self.counts = dict.fromkeys(COUNTS, 0)
        first = {"instruction": str(self.robot.instruction), "success": [False], "done": False}
        return {**first, "counts": self.counts}, [self.observe()]

    def go_home(self) -> None:
        home = getattr(self.robot, "home", None)
        if home is None:
            return
        home, self.last = np.asarray(home, np.float32), self.position()
        while (np.abs(self.limited(home) - self.last) > 1e-6).any():
            self.act(home)
            self.sleep_until(time.monotonic() + self.period)

    def position(self) -> np.ndarray:
        with self.expect("the position"):
            found = np.asarray(self.robot.position(), np.float32)
        if found.shape != self.low.shape or not np.isfinite(found).all():
            raise ValueError(f"position gives {found}, not {len(self.low)} finite numbers")
        return found

    def ask_person(self, initial_state: int) -> None:
        while not self.keys.empty():
            self.keys.get()
        keys = "s: success, f: failure, " if self.success == "person" else ""
        print(f"\r\nSet the scene of initial state {initial_state}, stand clear and press Enter ({keys}space: stop).",
              file=sys.stderr, flush=True)  # fmt: skip
        while self.keys.get() not in ("\n", "\r"):
            self.check()

    def step(self, chunk_KD: np.ndarray) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
        seen, success, sent, periods = [], [], [], []
        self.expected, begun = None, time.monotonic()
        if self.due is None:
            self.due, self.acted = begun, 0.0
        elif self.lapsed or begun > self.due + self.patience:
            raise StopError(f"the next command came {begun - self.due:.2f} s late (env.watchdog {self.patience:g})")
        for action in chunk_KD:
            now = time.monotonic()
            self.counts["late_commands"] += int(now > self.due + self.period / 2)
            if now > self.due + self.period:
                self.due = now  # what is lost is not made up for in a burst
            sent.append(self.act(action))
            now = time.monotonic()
            if self.acted:
                periods.append(now - self.acted)
            self.acted = now
            self.due += self.period
            self.sleep_until(self.due)
            seen.append(self.observe())
            success.append(self.judge())
        done = self.verdict is not None
        if done:
            self.hold()
            self.due = None
        answer = {"counts": self.counts, "success": success, "done": done, "periods": periods}
        return {**answer, "sent": [action.tolist() for action in sent]}, seen

    def limited(self, action: np.ndarray) -> np.ndarray:
        """Between the bounds, and near enough to the command before; that comes last, from wherever the robot is."""
        return np.clip(np.clip(action, self.low, self.high), self.last - self.change, self.last + self.change)

    def act(self, action: np.ndarray) -> np.ndarray:
        if not np.isfinite(action).all():
            raise StopError("a command holds NaN or infinity")
        limited = self.limited(action)
        self.counts["limited_actions"] += int((np.abs(limited - action) > 1e-6).any())
        self.check()
        with self.expect("a command"):
            self.robot.act(limited.copy())
        self.check()
        self.last = limited
        return limited

    def observe(self) -> Mapping[str, Any]:
        begun = time.monotonic()
        with self.expect("an observation"):
            seen = dict(self.robot.observe())
        self.check()
        age = time.monotonic() - float(seen.get("time", begun))
        self.counts["late_observations"] += int(age > self.period)
        if age > self.patience:
            raise StopError(f"an observation was {age:.2f} s old (env.watchdog {self.patience:g})")
        for camera, size in self.robot.cameras.items():
            image = np.asarray(seen["images"][camera])
            if image.dtype != np.uint8 or image.shape != (*size, 3):
                raise ValueError(f"camera {camera} shows {image.dtype} {image.shape}, not uint8 {(*size, 3)}")
        seen["state"] = np.asarray(seen["state"] if self.robot.state_dim else (), np.float32)
        if seen["state"].shape != (self.robot.state_dim,) or not np.isfinite(seen["state"]).all():
            raise ValueError(f"the state is {seen['state']}, not {self.robot.state_dim} finite numbers")
        return seen

    def judge(self) -> bool:
        """Whether the task counts as accomplished at this frame. A verdict ends the episode with the chunk."""
        if self.success == "robot":
            found = bool(self.robot.succeeded())  # type: ignore[attr-defined]
            self.verdict = True if found else self.verdict
            return found
        while not self.keys.empty():
            key = self.keys.get()
            if self.success == "person" and key in (SUCCESS_KEY, FAILURE_KEY):
                self.verdict = key == SUCCESS_KEY
        return self.verdict is True

    def sleep_until(self, due: float) -> None:
        self.ended.wait(max(0.0, due - time.monotonic()))
        self.check()


def make(name: str, path: Sequence[str], folders: Sequence[str], options: Mapping[str, Any]) -> Robot:
    """The robot that a name stands for: of BUILTIN, an entry point of wmpo.robots, or module:Class."""
    sys.path[:] = [*(path or sys.path), *folders, os.path.dirname(os.path.abspath(__file__))]
    if ":" not in (place := BUILTIN.get(name, name)):
        from importlib.metadata import entry_points

        found = {entry.name: entry.value for entry in entry_points(group="wmpo.robots")}
        if name not in found:
            raise StopError(
                f"there is no robot {name!r}: there are {', '.join([*BUILTIN, *found])}, or yours as module:Class"
            )
        place = found[name]
    module, _, cls = place.partition(":")
    made: Any = functools.reduce(getattr, cls.split("."), importlib.import_module(module))
    try:
        inspect.signature(made).bind(**options)
    except TypeError as error:
        raise StopError(f"env.options don't fit it: {error}") from None
    return made(**options)


@contextlib.contextmanager
def keyboard(driver: Driver) -> Iterator[None]:
    """Keys, one by one, where a person sits at a terminal."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    threading.Thread(target=driver.read_keys, daemon=True).start()
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def drive(connection: Connection, signals: socket.socket) -> None:
    start, _ = receive(connection)
    own = {key: start.pop(key) for key in ("watchdog", "success", "person")}
    robot = make(**start)
    if missing := [fact for fact in (*FACTS, "max_speed") if getattr(robot, fact, None) is None]:
        raise StopError(f"{start['name']} has no {', '.join(missing)} (docs/robot.md)")
    if own["success"] == "robot" and not hasattr(robot, "succeeded"):
        raise StopError(f"{start['name']} can't say whether it has succeeded: choose another env.success")
    driver = Driver(robot, connection, **own)
    for work, arguments in ((driver.listen, (signals,)), (driver.watch, ())):
        threading.Thread(target=work, args=arguments, daemon=True).start()
    with keyboard(driver):
        try:
            robot.connect()
            with driver.sending:
                facts = {fact: getattr(robot, fact) for fact in FACTS}
                send(connection, json.loads(json.dumps(facts, default=list)))
            driver.serve()
        except StopError as error:
            driver.stop(str(error))
        except BaseException as error:
            traceback.print_exc()
            driver.stop(f"{type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(Exception):
                robot.disconnect()


def main() -> None:
    mine, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # `Driver.listen` sees it
    with contextlib.suppress(OSError, AttributeError):  # where we may: before programs that only compute
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    connection = Connection(int(sys.argv[1]))
    os.dup2(2, 1)  # what a driver prints must not get between the lines that a command prints
    try:
        drive(connection, mine)
    except Exception as error:  # before there is anything to stop
        why = str(error)
        if type(error).__name__ not in ("StopError", "UserError"):  # by its name: wmpo needn't be here
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            send(connection, {"refused": why})
    os._exit(0)  # drivers' threads and libraries may hang in the interpreter's clean-up


if __name__ == "__main__":
    main()
