"""Tasks for the tests of engines. They stand in a module that a worker process can import."""

import os
import signal
import time
from pathlib import Path


class Square:
    """Squares numbers; a worker dies at one of them as often as there are files to remove in a folder."""

    def __init__(self, folder=None, deadly=None, error=None, slow=None):
        self.folder, self.deadly, self.error, self.slow = folder, deadly, error, slow

    def start(self):
        if self.error == "start":
            raise ValueError("the state cannot be made")
        return os.getpid()

    def run(self, state, item):
        if item == self.deadly:
            lives = sorted(Path(self.folder).glob("*"))
            if lives:
                lives[0].unlink()
                # The items beside this one have begun by now.
                time.sleep(0.2 if self.slow is not None else 0)
                os.kill(os.getpid(), signal.SIGKILL)
        if item == self.slow:
            time.sleep(5)
        if item == self.error:
            raise ValueError(f"item {item} is wrong")
        return item * item, state


class Slow:
    """Prints the number of its process, and takes its time."""

    def start(self):
        print(os.getpid(), flush=True)

    def run(self, state, item):
        time.sleep(item)


class Variable:
    """Returns variables of the worker's environment."""

    def start(self):
        return None

    def run(self, state, item):
        return os.environ.get(item)
