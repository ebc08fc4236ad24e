"""Being asked to stop, more than once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from wmpo.training.signals import stop_requests

SLOW = """
import atexit, sys, time
import wmpo.cli

def dispatch(args):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.4)  # cleaning up
atexit.register(time.sleep, 0.4)
wmpo.cli.dispatch = dispatch
sys.exit(wmpo.cli.main())
"""


def test_a_command_that_is_asked_to_stop_again_and_again_ends_in_one_sentence() -> None:
    command = [sys.executable, "-c", SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        while process.poll() is None:
            process.terminate()
            time.sleep(0.1)
        assert process.stderr is not None
        assert (
            process.stderr.read()
            == "wmpo: stopped; nothing that was finished is lost, and the same command continues.\n"
        )
    assert process.returncode == 130


def test_the_first_request_waits_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
