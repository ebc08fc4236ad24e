"""What LeRobot finds at the port of an SO-101: six Feetech servos on a pseudo-terminal, here those of `so101_sim.Arm`,
and two cameras, which its ZMQ camera reads. So LeRobot's own driver runs, down to the bytes, without an arm.

    python -m tests.so101_cable FOLDER

writes FOLDER/robot.json, LeRobot's configuration of that robot with its calibration, and then does what its standard
input says: `reset N`, answered by `ready N`. It prints `success` where an episode succeeds. It ends with its input.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pty
import signal
import sys
import threading
import time
import tty
from multiprocessing import get_context
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.so101_sim import HEIGHT, JOINTS, WIDTH, Arm

PING, READ, WRITE, SYNC_READ, SYNC_WRITE, ALL = 1, 2, 3, 0x82, 0x83, 0xFE
MODEL, LOWEST, HIGHEST, TORQUE, GOAL, PRESENT = 3, 9, 11, 40, 42, 56  # addresses
STS3215, LIMITS = 777, (0, 4095)


def ticks(joints: np.ndarray) -> np.ndarray:
    return np.round(np.append(joints[:5] * 4095 / 360 + 2047.5, joints[5] * 40.95)).clip(*LIMITS).astype(int)


def joints_at(found: np.ndarray) -> np.ndarray:
    return np.append((found[:5] - 2047.5) * 360 / 4095, found[5] / 40.95)


class Servos:
    """Their registers, and what they answer."""

    def __init__(self) -> None:
        shared = memoryview(RawArray("B", 7 * 128)).cast("B")
        self.memory = {number: shared[128 * number : 128 * (number + 1)] for number in range(1, 7)}
        for number in self.memory:
            self.memory[number][0:2] = b"\x03\x0a"  # firmware
            self.set(number, MODEL, STS3215)
            self.set(number, LOWEST, LIMITS[0])
            self.set(number, HIGHEST, LIMITS[1])

    def set(self, number: int, address: int, value: int) -> None:
        self.memory[number][address : address + 2] = int(value).to_bytes(2, "little")

    def show(self, joints: np.ndarray) -> None:
        for number, value in enumerate(ticks(joints), 1):
            self.set(number, PRESENT, value)

    def goals(self) -> np.ndarray:
        """(6,) joints; where the torque is off, they stay."""
        where = [GOAL if memory[TORQUE] else PRESENT for memory in self.memory.values()]
        values = [int.from_bytes(m[at : at + 2], "little") for m, at in zip(self.memory.values(), where, strict=True)]
        return joints_at(np.array(values))

    def answer(self, number: int, instruction: int, rest: bytes) -> bytes:
        """`rest`: the packet's parameters."""
        if instruction == SYNC_READ:
            return b"".join(self.status(n, bytes(self.memory[n][rest[0] : rest[0] + rest[1]])) for n in rest[2:])
        if instruction == SYNC_WRITE:
            address, size = rest[:2]
            for at in range(2, len(rest), size + 1):
                self.memory[rest[at]][address : address + size] = rest[at + 1 : at + 1 + size]
            return b""
        if number not in self.memory:
            return b""
        if instruction == WRITE:
            self.memory[number][rest[0] : rest[0] + len(rest) - 1] = rest[1:]
        found = bytes(self.memory[number][rest[0] : rest[0] + rest[1]]) if instruction == READ else b""
        return self.status(number, found)

    @staticmethod
    def status(number: int, data: bytes) -> bytes:
        body = bytes([number, len(data) + 2, 0]) + data
        return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])

    def serve(self, line: int) -> None:
        """All packets on the line, for ever; before programs that only compute, as servos don't wait for them."""
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        waiting = b""
        while True:
            waiting += os.read(line, 1024)
            while len(waiting) >= 4 and len(waiting) >= 4 + waiting[3]:
                packet, waiting = waiting[: 4 + waiting[3]], waiting[4 + waiting[3] :]
                assert packet[:2] == b"\xff\xff" and packet[-1] == ~sum(packet[2:-1]) & 0xFF, packet
                os.write(line, self.answer(packet[2], packet[4], packet[5:-1]))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    line, theirs = pty.openpty()
    tty.setraw(theirs)
    servos, numbers = Servos(), list[int]()
    # In a process of its own, which nothing keeps waiting.
    serving: Any = get_context("fork").Process(target=servos.serve, args=(line,), daemon=True)
    serving.start()
    import zmq

    socket: Any = zmq.Context().socket(zmq.PUB)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    arm = Arm("place")
    servos.show(arm.state())
    calibration = {
        name: {"id": n, "drive_mode": 0, "homing_offset": 0, "range_min": LIMITS[0], "range_max": LIMITS[1]}
        for n, name in enumerate(JOINTS, 1)
    }
    (folder / "arm.json").write_text(json.dumps(calibration))
    camera = {"type": "zmq", "server_address": "127.0.0.1", "port": port, "width": WIDTH, "height": HEIGHT, "fps": 30}
    robot = {"type": "so101_follower", "port": os.ttyname(theirs), "id": "arm", "calibration_dir": str(folder)}
    robot["cameras"] = {name: {**camera, "camera_name": name} for name in ("front", "wrist")}

    def listen() -> None:
        for text in sys.stdin:
            numbers.append(int(text.split()[1]))
        os.kill(serving.pid, signal.SIGTERM)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    due, told = time.monotonic(), False
    (folder / "robot.json").write_text(json.dumps(robot))
    while True:
        if numbers:
            arm.reset(number := numbers.pop(0))
            servos.show(arm.state())
            for n, value in enumerate(ticks(arm.state()), 1):
                servos.set(n, GOAL, value)
            told = False
            print(f"ready {number}", flush=True)
        while time.monotonic() > due:
            arm.step(servos.goals())
            servos.show(arm.state())
            due += 1 / arm.fps
        if arm.succeeded and not told:
            told = True
            print("success", flush=True)
        shown = {}
        for name, image in arm.images().items():
            file = io.BytesIO()
            Image.fromarray(image[..., ::-1]).save(file, "JPEG", quality=95)  # that camera takes it for BGR
            shown[name] = base64.b64encode(file.getvalue()).decode()
        socket.send_string(json.dumps({"timestamps": dict.fromkeys(shown, time.time()), "images": shown}))
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
