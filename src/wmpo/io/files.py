"""Files that are either whole or not there, whatever moment the process is killed at."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wmpo.errors import UserError
from wmpo.io.plain import Json

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes `path`'s place when the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # in a folder of a stranger's it may be a link, through which one would write
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise _asked_for(error, temporary, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def _asked_for(error: OSError, temporary: Path, asked: Path) -> OSError:
    """The error of what somebody has asked for, in the same words whichever library has written."""
    if not error.errno or not (error.filename is None or str(error.filename).startswith(str(temporary))):
        return error
    return OSError(error.errno, os.strerror(error.errno), str(asked))


def atomic_write(path: Path, content: bytes | str) -> None:
    """Replace the file at `path` by one with this content."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def require_vacant(out: Path) -> None:
    """Raise UserError unless a new folder can become `out`: nothing is there, or an empty folder."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"{out} is there already: choose another folder, or remove it.")


def is_stream(path: Path) -> bool:
    """Whether a pipe, a socket or a device is there, of which reading may never end."""
    return path.exists() and not path.is_file() and not path.is_dir()


def require_writable(folder: Path, what: str) -> None:
    """Raise UserError, which says that it `what`, where no file can be made in the folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} {what}: {error.strerror}.") from None


def copy_file(old: Path, new: Path) -> None:
    """The bytes of a file in a new one, never a link to it; folders are made."""
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(old, new)


@contextmanager
def atomic_folder(out: Path, source: Path) -> Iterator[Path]:
    """A new folder to fill, with room beside it; it becomes `out` when the block ends without an exception.

    Raises UserError where `out` holds anything, or lies in `source`, the folder that is read.
    """
    require_vacant(out)
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in {source}, which is only read: choose another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        try:
            yield made
            os.replace(made, out)
        except OSError as error:
            raise _asked_for(error, made, out) from None


def write_json(path: Path, data: object) -> None:
    """Replace the file at `path` by `data` as readable JSON; NaN becomes null, as JSON has none."""
    atomic_write(path, json.dumps(_no_nan(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Json:
    """What a JSON file holds. Raises UserError where there is none, or where it can't be read."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file: remove it, or give another path.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is no text in UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged or incomplete: it is no JSON from line {error.lineno} on.") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits; thousands of brackets
        raise UserError(f"{path} is damaged: it holds numbers or brackets beyond all measure.") from None


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock that the file at `path` stands for; it ends with the process, whatever ends that.

    Some network disks know no locks: there it keeps out processes of this machine only. With `wait` False, raises
    BlockingIOError where another process holds it.
    """
    mode = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    if is_stream(path):
        raise UserError(f"{path} is no file but a pipe or a device: remove it.")
    with path.open("a") as file:
        try:
            fcntl.flock(file, mode)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        else:
            yield
            return
    folder = Path(tempfile.gettempdir()) / f"wmpo-locks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()).open("a") as file:
        fcntl.flock(file, mode)
        yield


def _no_nan(data: Json) -> Json:
    if isinstance(data, float):
        return data if abs(data) != float("inf") and data == data else None
    if isinstance(data, dict):
        return {key: _no_nan(item) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        return [_no_nan(item) for item in data]
    return data
