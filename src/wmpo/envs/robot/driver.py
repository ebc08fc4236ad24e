"""Drives a robot in a process of its own: at a fixed rate, within limits, under a watchdog.

`wmpo.envs.robot.env` runs this file by its path, maybe under another Python (3.10 or newer) that has neither wmpo nor
torch. Whatever happens to the program that decides, it sees its pipe close, or no command come, and stops the robot.
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
LIBRARIES = (os.path.abspath(__file__), "/lib/python", "<frozen")
SIZES, BOUNDS = ("state_dim", "action_dim", "horizon", "fps"), ("action_low", "action_high", "max_speed")
COUNTS = ("late_observations", "late_commands", "limited_actions")


def send(connection: Connection, head: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """A message: JSON, and arrays after it. Nothing that is received can execute code."""
    connection.send_bytes(json.dumps({**head, "arrays": [(array.dtype.str, array.shape) for array in arrays]}).encode())
    for array in arrays:
        connection.send_bytes(array.tobytes())


def receive(connection: Connection) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What `send` has sent. Raises EOFError or OSError where the other side has gone."""
    head = json.loads(connection.recv_bytes())
    return head, [np.frombuffer(connection.recv_bytes(), kind).reshape(shape) for kind, shape in head.pop("arrays")]


class StopError(Exception):
    """The robot has been stopped; the text says why."""


def reason(error: BaseException) -> str:
    """What the robot's class has raised, in one line: its kind, its text, and the last line that is no library's."""
    text = " ".join(str(error).split())[:500]
    if type(error).__name__ in ("StopError", "UserError"):  # by its name: wmpo needn't be here
        return text
    what = "it called sys.exit" if isinstance(error, SystemExit) else f"{type(error).__name__}: {text}".rstrip(": ")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in LIBRARIES):
            return f"{what} ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return what


def numbers(value: Any, size: int, what: str, alike: bool = False) -> np.ndarray:
    """(size,) float32 of its own, all finite; `alike`: one number may stand for all."""
    with contextlib.suppress(TypeError, ValueError):
        found = np.array(np.broadcast_to(np.asarray(value, np.float32), (size,)))
        if np.isfinite(found).all() and (alike or np.shape(value) == (size,)):
            return found
    raise StopError(f"{what} is {repr(value)[:100]}, not {size} finite numbers")


def check_facts(robot: Robot, name: str) -> None:
    """What a robot says of itself must be there, and its sizes whole numbers."""
    if missing := [fact for fact in ("cameras", *SIZES, "instruction", *BOUNDS) if getattr(robot, fact, None) is None]:
        raise StopError(f"{name} has no {', '.join(missing)} (docs/robot.md)")
    sizes: dict[str, Any] = {fact: getattr(robot, fact) for fact in SIZES}
    try:
        for camera, (height, width) in robot.cameras.items():
            sizes |= {f"height of camera {camera}": height, f"width of camera {camera}": width}
    except Exception:
        raise StopError(f"its cameras are {str(robot.cameras)[:100]}, not {{name: (height, width)}}") from None
    for fact, value in sizes.items():
        if type(value) is not int or not (fact != "state_dim") <= value <= 10**6:
            raise StopError(f"its {fact} is {repr(value)[:100]}, not a whole number up to a million")


class Driver:
    """Answers "reset" and "step" requests. Stopped once, for whatever reason, it answers nothing any more."""

    def __init__(self, robot: Robot, connection: Connection, watchdog: float, success: str, person: bool) -> None:
        self.robot, self.connection, self.success, self.person = robot, connection, success, person
        self.period, self.patience = 1 / robot.fps, watchdog
        low, high, speed = (numbers(getattr(robot, name), robot.action_dim, name, alike=True) for name in BOUNDS)
        home = getattr(robot, "home", None)
        self.home = None if home is None else numbers(home, robot.action_dim, "home", alike=True)
        self.low, self.high, self.change = low, high, speed * np.float32(self.period)
        if not ((low < high) & (speed > 0)).all():
            raise StopError("action_low must be below action_high, and max_speed above 0")
        self.requests: queue.Queue[tuple[dict[str, Any], list[np.ndarray]] | None] = queue.Queue()
        self.keys: queue.Queue[str] = queue.Queue()
        self.stopped = ""
        self.ended, self.told, self.left = (threading.Event() for _ in range(3))  # `ended` ends every wait
        self.sending, self.first = threading.Lock(), threading.Lock()
        self.expected: tuple[float, str] | None = None  # when what is waited for is too late, and what it is
        self.due: float | None = None  # when the next command is; None before an episode's first
        self.lapsed = False  # whether it did not come in time
        self.acted = 0.0
        self.counts = dict.fromkeys(COUNTS, 0)
        self.verdict: bool | None = None
        self.last = np.zeros(robot.action_dim, np.float32)

    def stop(self, why: str) -> None:
        """For good, from any thread: the robot first, then the caller is told, and the process ends soon."""
        if not self.first.acquire(blocking=False):
            return
        self.stopped = why
        self.ended.set()
        threading.Timer(GRACE, os._exit, (1,)).start()  # whatever still hangs then, the robot's stop as well
        self.hold()
        self.requests.put(None)
        self.keys.put("")
        with contextlib.suppress(OSError), self.sending:
            send(self.connection, {"stopped": why})
        self.told.set()

    def hold(self) -> None:
        try:
            self.robot.stop()
        except BaseException as error:  # sys.exit would end the watchdog's thread
            print(f"\r\nThe robot's stop has failed: {reason(error)}.", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def expect(self, what: str) -> Iterator[None]:
        """Within the block the watchdog stops the robot where it takes too long."""
        self.expected = (time.monotonic() + self.patience, what)
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
        end = time.monotonic() + GRACE - 0.5
        while not self.left.wait(self.period):  # a routine of the robot's own may command it still
            with contextlib.suppress(BaseException):
                self.robot.stop()
            if time.monotonic() > end:
                os._exit(1)

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

    def serve(self) -> None:
        while request := self.requests.get():
            head, arrays = request
            answer, seen = self.reset(head["initial_state"]) if head["op"] == "reset" else self.step(arrays[0])
            self.check()
            images = [np.stack([frame["images"][camera] for frame in seen]) for camera in self.robot.cameras]
            if self.due is not None:  # from now on: whoever doesn't even read this sends no command either
                self.expected = (self.due + self.patience, "")
            with self.sending:
                send(self.connection, answer, [*images, np.stack([frame["state"] for frame in seen])])

    def check(self) -> None:
        if self.stopped:
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
        if self.home is None:
            return
        self.last = self.position()
        while (np.abs(self.limited(self.home) - self.last) > 1e-6).any():
            self.act(self.home)
            self.sleep_until(time.monotonic() + self.period)

    def position(self) -> np.ndarray:
        with self.expect("the position"):
            return numbers(self.robot.position(), len(self.low), "position")

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
            before, self.acted = self.acted, time.monotonic()
            periods += [self.acted - before] if before else []
            self.due += self.period
            self.sleep_until(self.due)
            seen.append(self.observe())
            success.append(self.judge())
        if done := self.verdict is not None:
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
        """Copies: drivers write one picture over another."""
        begun = time.monotonic()
        with self.expect("an observation"):
            seen: Any = self.robot.observe()
        self.check()
        if not (isinstance(seen, Mapping) and isinstance(seen.get("images"), Mapping)):
            raise StopError(f"observe gives {str(seen)[:100]}, not a dictionary with images by the names of cameras")
        taken = seen.get("time", begun)
        age = time.monotonic() - taken if isinstance(taken, (int, float, np.number)) else np.nan
        self.counts["late_observations"] += int(age > self.period)
        if not -self.period <= age <= self.patience:
            raise StopError(f"an observation was {age:.2f} s old by time.monotonic() (env.watchdog {self.patience:g})")
        images = {}
        for camera, size in self.robot.cameras.items():
            if camera not in seen["images"]:
                raise StopError(f"observe gives no picture of camera {camera}")
            images[camera] = image = np.array(seen["images"][camera])
            if image.dtype != np.uint8 or image.shape != (*size, 3):
                raise StopError(f"camera {camera} shows {image.dtype} {image.shape}, not uint8 {(*size, 3)}")
        felt = seen.get("state") if self.robot.state_dim else ()
        return {"images": images, "state": numbers(felt, self.robot.state_dim, "state")}

    def judge(self) -> bool:
        """Whether the task counts as accomplished at this frame. A verdict ends the episode with the chunk."""
        if self.success == "robot":
            with self.expect("the verdict"):
                found = self.robot.succeeded()  # type: ignore[attr-defined]
            if not isinstance(found, (bool, np.bool_)):
                raise StopError(f"succeeded gives {str(found)[:100]}, not True or False")
            self.verdict = True if found else self.verdict
            return bool(found)
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
            raise StopError(f"there is no robot {name!r}: use {', '.join([*BUILTIN, *found])}, or module:Class")
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
    check_facts(robot, start["name"])
    if own["success"] == "robot" and not hasattr(robot, "succeeded"):
        raise StopError(f"{start['name']} can't say whether it has succeeded: choose another env.success")
    driver = Driver(robot, connection, **own)
    for work, arguments in ((driver.listen, (signals,)), (driver.watch, ())):
        threading.Thread(target=work, args=arguments, daemon=True).start()
    with keyboard(driver):
        try:
            robot.connect()
            with driver.sending:
                facts = {fact: getattr(robot, fact) for fact in SIZES} | {"cameras": dict(robot.cameras)}
                send(connection, {**facts, "action_low": driver.low.tolist(), "action_high": driver.high.tolist()})
            driver.serve()
        except BaseException as error:
            driver.stop(reason(error))
            driver.hold()  # once more: where another thread has stopped it, a command may have been under way
        finally:
            driver.left.set()
            with contextlib.suppress(Exception):
                robot.disconnect()
            driver.told.wait(GRACE)


def main() -> None:
    mine, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, lambda *_: None)  # `Driver.listen` sees it
    with contextlib.suppress(OSError, AttributeError):  # where we may: before programs that only compute
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    connection = Connection(int(sys.argv[1]))
    os.dup2(2, 1)  # what a driver prints must not get between the lines that a command prints
    try:
        drive(connection, mine)
    except BaseException as error:  # before there is anything to stop
        with contextlib.suppress(OSError):
            send(connection, {"refused": reason(error)})
    os._exit(0)  # drivers' threads and libraries may hang in the interpreter's clean-up


if __name__ == "__main__":
    main()
