"""`wmpo`: the command line. Every command is a dataclass of options with `execute`, imported when it is asked for."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from wmpo.errors import UserError, out_of_memory, reason


class HelpShown(SystemExit):
    """What --help ends with once it has printed."""


class Command(NamedTuple):
    module: str
    name: str  # of the class of options
    about: str


COMMANDS: dict[str, Command] = {
    "run": Command("run", "RunCommand", "the whole loop, from nothing to a report; continues where it was stopped"),
    "run data": Command("run_data", "RunDataCommand", "the loop on recorded episodes alone, without an environment"),
    "evaluate": Command("evaluate", "EvaluateCommand", "measure policies of a run in the real environment"),
    "report": Command("run", "ReportCommand", "rewrite the report of a finished run"),
    "play": Command("pages", "PlayCommand", "drive the dream of a run by hand, in a web page"),
    "view": Command("pages", "ViewCommand", "look at stored episodes, real beside imagined, in a web page"),
    "serve": Command("serve", "ServeCommand", "let vla-eval's benchmarks or LeRobot's robots ask a policy for actions"),
    "check": Command(
        "check", "CheckCommand", "try an environment, model or data set out, and say what is wrong with it"
    ),
    "data check": Command("data", "DataCheckCommand", "what a data set of yours holds, and what it can be used for"),
    "data import": Command("data", "DataImportCommand", "an episode store from a data set of yours"),
    "data label": Command("data", "DataLabelCommand", "say which episodes of a store succeed"),
    "data export": Command("data", "DataExportCommand", "a plain LeRobot data set from an episode store"),
    "data rerun": Command("data", "DataRerunCommand", "a recording for the Rerun viewer from episodes"),
    "plan": Command("plan", "PlanCommand", "how much memory and time the stages of a recipe will take"),
    "recipes": Command("lists", "RecipesCommand", "what `wmpo run` can run"),
    "tasks": Command("lists", "TasksCommand", "what an environment can ask of a policy"),
    "doctor": Command("lists", "DoctorCommand", "what this machine has, what will be used, and how to get more"),
    "demonstrate": Command("stages", "DemonstrateCommand", "stage: scripted demonstrations into an episode store"),
    "imitate": Command("stages", "ImitateCommand", "stage: a policy from the demonstrations in a store"),
    "collect": Command("stages", "CollectCommand", "stage: real rollouts of a policy into a store"),
    "world-model": Command("dreaming", "WorldModelCommand", "stage: a video model from the episodes of stores"),
    "reward-model": Command(
        "dreaming", "RewardModelCommand", "stage: a success classifier from the episodes of a store"
    ),
    "practise": Command("dreaming", "PractiseCommand", "stage: improve a policy in imagination"),
    "export": Command("export", "ExportCommand", "a policy for the program that it came from: LeRobot, transformers"),
}
SHARED = (
    "run",
    "run data",
    "imitate",
    "world-model",
    "reward-model",
    "practise",
)  # by processes of torchrun
NO_FAULT_OF_OURS = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.EMFILE, errno.EFBIG, errno.ENOTEMPTY,
)  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    if args is not None:
        given = list(args)
        return exit_status(lambda: dispatch(given))
    open_standard_streams()
    signal.signal(signal.SIGTERM, _stop)
    threading.excepthook = _of_thread
    try:
        return exit_status(together if launched() else lambda: dispatch(sys.argv[1:]))
    except KeyboardInterrupt:  # asked again while answering the first time
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # Python would let them kill it while it winds up
            signal.signal(number, signal.SIG_IGN)


def open_standard_streams() -> None:
    """A shell may have closed some (>&-); nothing else may get their numbers, to which processes of ours write."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is given out next: this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def exit_status(command: Callable[[], int]) -> int:
    """What `command` returns. Bad input: one sentence and 2. Stopped: one line and 130. Nobody reads what it prints:
    141, as for any program in a pipe."""
    try:
        status = command()
        print(end="", flush=True)
        return status
    except UserError as error:
        return complain(str(error), 2)
    except HelpShown:
        raise
    except SystemExit as error:  # in a user's code
        return complain(f"The program was ended: {reason(error)}.", 2)
    except KeyboardInterrupt:
        return complain("stopped; nothing that was finished is lost, and the same command continues.", 130)
    except BrokenPipeError:
        if not nobody_reads():
            raise
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in NO_FAULT_OF_OURS:
            raise
        place = error.filename or "the disk, or what this is printed to"
        return complain(f"{error.strerror}: {place}; what was made so far is kept.", 2)
    except (MemoryError, RuntimeError) as error:
        if str(error).startswith("Symlink loop"):  # as Path.resolve says it before Python 3.13
            return complain(f"{error}: give another path.", 2)
        if not out_of_memory(error):
            raise
        return complain("Out of memory: choose smaller sizes or batches; `wmpo plan` says what a recipe needs.", 2)


def launched() -> bool:
    """Whether torchrun has started this as one of several processes."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"


def together() -> int:
    """`dispatch` in one of several processes, which begin and end together."""
    from wmpo.training import ranks

    ranks.start()
    status = dispatch(sys.argv[1:])
    ranks.end()
    return status


def dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if args[0] in ("--version", "-V"):
        from importlib.metadata import version

        print(f"wmpo {version('wmpo')}")
        return 0
    for arg in args:
        if not arg.isprintable():
            raise UserError(f"The argument {arg!r} holds characters that can't be shown: give paths in plain UTF-8.")
    if " ".join(args[:2]) in COMMANDS:  # of two words
        args = [" ".join(args[:2]), *args[2:]]
    if args[0] not in COMMANDS:
        more = [name for name in COMMANDS if name.startswith(f"{args[0]} ")]
        if more:
            raise UserError(f"wmpo {args[0]} needs one word more: choose one of {', '.join(more)}.")
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}."
        raise UserError(f"There is no command {args[0]!r}: {hint}")
    if launched() and args[0] not in SHARED:
        raise UserError(f"wmpo {args[0]} is work for one process: start it without torchrun.")
    return understood(args).execute() or 0


def understood(args: list[str]) -> Any:
    """The command that `args` ask for, its name first, before anything is done."""
    args = allowing(args)
    command = COMMANDS[args[0]]
    options = getattr(importlib.import_module(f"wmpo.cli.{command.module}"), command.name)
    if hasattr(options, "parse"):
        return options.parse(args[1:])
    from wmpo.cli.parse import parse

    return parse(options, args[1:], f"wmpo {args[0]}")


def allowing(args: list[str]) -> list[str]:
    """The arguments less each --allow module:Class, module, folder or interpreter, which files may name from now on."""
    left = []
    given = iter(args)
    for arg in given:
        option, equals, name = arg.partition("=")
        if option != "--allow":
            left.append(arg)
            continue
        name = name if equals else next(given, "")
        from wmpo.families import allow, is_dotted

        if not (is_dotted(name) or os.sep in name or (name and (os.path.isdir(name) or shutil.which(name)))):
            raise UserError(
                "--allow needs the name of a class of yours, as module:Class, a module, a folder of code, or a Python "
                f"interpreter, not {name!r}."
            )
        allow(name)
    return left


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "wmpo: robot policies that improve by practising in imagined video.",
            "",
            "usage: wmpo COMMAND [OPTIONS]        wmpo COMMAND --help explains every option",
            "",
            *lines,
            "",
            "  --allow module:Class               let the files of a run name this class or module of yours, or",
            "                                     another Python or folder, by its path; for any command",
            "",
            "  wmpo run place                     the main job on a laptop's CPU",
            "  wmpo run place --seed 1 --grpo.iterations 5",
            "  wmpo evaluate runs/place-seed0 --disruption texture",
        ]
    )


def nobody_reads() -> bool:
    """Whether what we print has no reader any more, as in `wmpo run place --help | head`; Python then says no more."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def complain(text: str, status: int) -> int:
    if launched():
        from wmpo.training import ranks

        text, status = ranks.last_words(text, status)
    if not text:
        return status
    for stream, words in ((sys.stdout, ""), (sys.stderr, f"wmpo: {text}\n")):
        try:
            print(words, end="", file=stream, flush=True)
        except OSError:  # on a full disk, maybe; what is left of it, Python would complain about when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def _of_thread(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread of its own, to a disk that may be full or a folder that may be gone."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in NO_FAULT_OF_OURS):
        threading.__excepthook__(failed)


def _stop(*_: object) -> None:
    """Being asked to end is as good as Ctrl-C; asked once more, the end is on its way already."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
