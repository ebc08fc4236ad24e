"""What LeRobot's clients pickle, opened without running anything of it, and what they unpickle, made without LeRobot.

Unpickling calls whatever a pickle names. Here it may name a few things only, each of which is a stand-in of this
module that keeps numbers, texts and bytes; NumPy's arrays are made from their bytes, once kind and shape are found to
fit. What can be written in a pickle at all is limited before, to what such messages need.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from wmpo.errors import UserError

SAME = "lerobot.async_inference.helpers"
CLASSES = ("RemotePolicyConfig", "TimedObservation")
OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "STACK_GLOBAL", "NEWOBJ", "REDUCE", "BUILD",
})  # fmt: skip
MANY = 20_000  # opcodes: a robot of a thousand joints takes 3,000
KINDS = ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class Kind:
    """Stands for a dtype."""

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        if name not in KINDS:
            raise UserError(f"An array in the message is of kind {str(name)[:20]!r}: only numbers are admitted.")
        self.name, self.order = str(name), "="

    def __setstate__(self, state: Sequence[object]) -> None:
        self.order = {"<": "<", ">": ">"}.get(str(state[1]), "=")

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.name)


class Array:
    """Stands for an array until its bytes come."""

    values: np.ndarray

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, kind, fortran, content = state
        self.values = _array(content, kind, shape, "F" if fortran else "C")


def _array(content: Any, kind: Any, shape: Any, order: object = "C") -> np.ndarray:
    if not (isinstance(content, (bytes, bytearray)) and isinstance(kind, Kind) and isinstance(shape, tuple)):
        raise UserError("An array in the message is damaged.")
    if not all(type(side) is int and side >= 0 for side in shape) or order not in ("C", "F"):
        raise UserError("An array in the message is damaged.")
    if math.prod(shape) * kind.dtype().itemsize != len(content):
        raise UserError("An array in the message has another size than its bytes.")
    return np.frombuffer(content, kind.dtype()).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: Any, content: Any) -> Any:
    return _array(content, kind, ()).item()


def _whole(content: Any, kind: Any, shape: Any, order: Any) -> Array:
    made = Array()
    made.values = _array(content, kind, shape, order)
    return made


class Reader(pickle.Unpickler):
    """Knows stand-ins only."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.made = {(SAME, name): type(name, (), {}) for name in CLASSES}  # anew, so that nothing stays in them
        self.known: dict[tuple[str, str], object] = {**self.made, ("numpy", "ndarray"): None, ("numpy", "dtype"): Kind}
        for core in ("numpy.core", "numpy._core"):  # before and after NumPy 2
            self.known |= {
                (f"{core}.multiarray", "_reconstruct"): lambda *_: Array(),
                (f"{core}.multiarray", "scalar"): _scalar,
                (f"{core}.numeric", "_frombuffer"): _whole,
            }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise UserError(
                f"The message names {module[:80]}.{name[:80]}: only LeRobot's own messages of numbers, texts and NumPy "
                "arrays are opened."
            )
        return self.known[module, name]


def read(data: bytes, expected: str) -> dict[str, Any]:
    """The fields of a pickled object of LeRobot's class `expected`, one of CLASSES; arrays at most in a dict of these.

    Raises UserError for anything else, of which nothing is run.
    """
    try:
        for count, (opcode, _, _) in enumerate(pickletools.genops(data)):
            if opcode.name not in OPCODES or count > MANY:
                raise UserError(f"The message isn't one of LeRobot's: it holds {opcode.name}, or too much.")
        reader = Reader(data)
        found = reader.load()
        if type(found) is not reader.made[SAME, expected]:
            raise UserError(f"The message isn't LeRobot's {expected}.")
        return {name: _plain(value) for name, value in vars(found).items()}
    except UserError:
        raise
    except Exception as error:  # whatever a damaged pickle leads to
        raise UserError(f"The message isn't one of LeRobot's: {type(error).__name__}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: inner.values if isinstance(inner, Array) else inner for name, inner in value.items()}
    return value


def write_actions(actions_KD: np.ndarray, timestep: int, timestamp: float) -> bytes:
    """A pickled list of LeRobot's TimedAction, numbered from `timestep` on. LeRobot need not be installed, to which
    `pickle.dumps` would look for the class; so the objects around what it pickles are written here."""
    parts = [pickle.PROTO + b"\x02", pickle.MARK]
    for place, action in enumerate(actions_KD):
        fields = {"timestamp": timestamp, "timestep": timestep + place, "action": torch.from_numpy(action.copy())}
        content = pickle.dumps(fields, protocol=2)[2:-1]  # without its beginning, PROTO, and its end, STOP
        name = pickle.GLOBAL + f"{SAME}\nTimedAction\n".encode()
        parts += [name, pickle.EMPTY_TUPLE, pickle.NEWOBJ, content, pickle.BUILD]
    return b"".join([*parts, pickle.LIST, pickle.STOP])
