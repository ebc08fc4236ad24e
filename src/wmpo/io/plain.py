"""Dataclasses to plain JSON values and back, strictly: a wrong field is told in one sentence."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from wmpo.errors import UserError

T = TypeVar("T")


class Between(NamedTuple):
    """What a number may be, in the annotation of its setting: `Annotated[int, Between(1, 1024)]`."""

    least: float
    most: float


FREE = "free"
"""In the annotation of a setting, `Annotated[bool, FREE]`: it changes no number by more than rounding, so that what was
begun with one value may go on with another."""
ANY = Between(-(10**9), 10**9)  # of a setting that names no range of its own
Json = Any
"""A value as JSON knows it; what is in it is checked where it is read."""
JsonObject = dict[str, Any]
"""A JSON object, likewise."""


def to_plain(value: object) -> Json:
    """Dataclasses, mappings, sequences and numbers as JSON knows them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch numbers and arrays
        return value.tolist()
    return value


def numbers_of(settings: object) -> JsonObject:
    """As `to_plain`, of a dataclass, without its settings that are `FREE`, nor those of dataclasses in it."""
    freed = {
        name
        for base in filter(dataclasses.is_dataclass, type(settings).__mro__)  # a family may give it another default
        for name, hint in typing.get_type_hints(base, include_extras=True).items()
        if FREE in getattr(hint, "__metadata__", ())
    }
    return {
        name: numbers_of(value) if dataclasses.is_dataclass(value) else to_plain(value)
        for name, value in vars(settings).items()
        if name not in freed
    }


def free(settings: object) -> frozenset[str]:
    """Dotted names of the settings that are `FREE`."""
    return frozenset(flat(to_plain(settings)).keys() - flat(numbers_of(settings)).keys())


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted name -> value of nested mappings."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Dotted name -> what to tell of it, before and now, such as ("lr = 0.2", "0.1"). What is absent equals None."""
    before, now = flat(old), flat(new)
    return {
        name: (f"{name} = {before.get(name, 'none on record')}", str(now.get(name, "none")))
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    }


def from_plain(cls: type[T], data: Json, where: str, null_is_nan: bool = False) -> T:
    """The dataclass `cls` from `to_plain`'s output. `where` names the source in error messages.

    Numbers must be finite; `null_is_nan`: or null, which `write_json` stores for NaN. Raises UserError.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where} should hold the fields of {cls.__name__}, but holds {_kind(data)}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise UserError(f"{where} has a field {unknown[0]!r} that {cls.__name__} does not know.")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}: {name}", null_is_nan)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where} lacks the field {name!r} of {cls.__name__}.")
    try:
        made = cls(**values)
        check_ranges(made, others=None)
    except UserError as error:  # of the dataclass's own checks
        raise UserError(f"{where}: {error}") from None
    return made


def check_ranges(settings: object, prefix: str = "", others: Between | None = ANY) -> None:
    """Raise UserError for the first number that is not `Between` its bounds, nested ones included, and for the first
    value that is none of its Literal. `others` are the bounds of numbers without any."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for name, value in vars(settings).items():
        field, hint = prefix + (name.replace("_", "-") if prefix.startswith("--") else name), hints[name]
        kind = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{field}.", others)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            facts = (fact for fact in getattr(hint, "__metadata__", ()) if isinstance(fact, Between))
            if bounds := next(facts, others):
                _number(field, value, *bounds)
        elif get_origin(kind) is Literal and value not in get_args(kind):
            raise UserError(f"{field} is {value!r}; it must be one of {', '.join(map(str, get_args(kind)))}.")


def _number(field: str, value: float, least: float, most: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"{field} is {value}; it must be a finite number.")
    if value < least:
        bound = "above 0" if 0 < least < 0.01 and value <= 0 else f"at least {least:g}"
        raise UserError(f"{field} is {value}; it must be {bound}.")
    if value > most:
        raise UserError(f"{field} is {value}; it must be at most {most:.10g}.")


def _convert(hint: Any, value: Json, where: str, null_is_nan: bool) -> Json:
    def convert(hint: Any, value: Json, where: str) -> Json:
        return _convert(hint, value, where, null_is_nan)

    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where, null_is_nan)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, arguments))}.")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(next(argument for argument in arguments if argument is not type(None)), value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(value, Mapping, where, "an object")
        return {key: convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        _expect(value, (list, tuple), where, "a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise UserError(f"{where} has {len(value)} items; it must have {len(arguments)}.")
        pairs = zip(arguments, value, strict=True)
        return tuple(convert(argument, item, f"{where}[{i}]") for i, (argument, item) in enumerate(pairs))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        _expect(value, (list, tuple), where, "a list")
        return [convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if hint is float and value is None and null_is_nan:
        return math.nan
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # NaN, infinity, and whole numbers that no float holds
            raise UserError(f"{where} is {_kind(value)}; it must be a finite number.")
        return float(value)
    if hint is int and isinstance(value, bool):
        raise UserError(f"{where} is {value!r}; it must be a whole number.")
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    _expect(value, hint, where, names.get(hint, getattr(hint, "__name__", str(hint))))
    return value


def _expect(value: object, kind: Any, where: str, name: str) -> None:
    if not isinstance(value, kind):
        raise UserError(f"{where} is {_kind(value)}; it must be {name}.")


def _kind(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"
