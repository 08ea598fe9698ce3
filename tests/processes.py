"""Processes that scripts of tests start."""

import os
import socket
import traceback
from collections.abc import Callable


def start(work: Callable[[], None]) -> int:
    """Run work in a fork. Returns its process id."""
    if pid := os.fork():
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def free_port() -> int:
    """A port of this machine that no process listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
