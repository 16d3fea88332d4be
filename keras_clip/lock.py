"""A lock file: one process at a time writes a folder, others wait for it, and a dead one's lock is taken over.

The file names its holder by process, machine and a random token, and has a count that a thread of the holder increases
every few seconds. A process of the same machine is dead if it no longer runs. One of another machine, on a network file
system, is taken for dead if its count stands still for `_SILENCE` seconds on the watch of the process that waits, so
the clocks of the machines need not agree. A holder whose lock was taken over, since it was suspended, does not go on.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from keras_clip import files

# Seconds between two signs of life.
_BEAT = 5
# Seconds without one after which a holder on another machine is dead. Network file systems may show a file as it was
# a minute ago.
_SILENCE = 150
# Seconds between two looks at a lock that another process holds.
_POLL = 1
# Seconds between two messages of a process that waits.
_REMIND = 300
# A file without a readable holder was left by a process that died while it wrote it.
_UNREADABLE = {"token": None}


class Lock:
    """A lock between processes, held in a `with` block, which waits until no other process holds it.

    Args:
        path: the lock file. Its folder must exist.
        what: what is locked, for messages.
    """

    def __init__(self, path: str | os.PathLike, what: str):
        self._path, self._what = Path(path), what
        self._holder = {"token": secrets.token_hex(8), "beat": 0, **_this_process()}
        self._writes, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lock":
        while not self._create():
            self._wait()
        self._thread = threading.Thread(target=self._beat, name=f"lock of {self._what}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        if self._is_own():
            self._path.unlink(missing_ok=True)

    def require_held(self) -> None:
        """Raises a RuntimeError if another process took the lock over."""
        if not self._is_own():
            raise RuntimeError(
                f"Only one process may build {self._what}. Received: a lock, {self._path}, that another process took "
                f"over while this one gave no sign of life for {_SILENCE} s, or that was removed. Start again: what "
                "has been encoded is kept."
            )

    def _create(self) -> bool:
        # A new file of another name that is linked to the name of the lock: it is never seen without its content. A
        # link fails if the name exists, on network file systems too.
        draft = self._path.with_name(f".{self._holder['token']}.lock")
        try:
            draft.write_text(json.dumps(self._holder), encoding="utf-8")
            try:
                os.link(draft, self._path)
            except FileExistsError:
                return False
            except OSError:
                # A file system without links.
                return self._create_exclusively()
            return True
        finally:
            draft.unlink(missing_ok=True)

    def _create_exclusively(self) -> bool:
        try:
            with open(self._path, "x", encoding="utf-8") as file:
                file.write(json.dumps(self._holder))
        except FileExistsError:
            return False
        return True

    def _wait(self) -> None:
        """Returns when the lock may be free: its file is gone, or that of a dead process was removed."""
        seen, since = self._read(), time.monotonic()
        told = -_REMIND
        while seen is not None:
            silence = time.monotonic() - since
            if _is_dead(seen, silence):
                self._take_away(seen)
                return
            if time.monotonic() - told >= _REMIND:
                told = time.monotonic()
                logging.getLogger("keras_clip").warning(
                    "Waiting for process %s on %s, which builds %s. If there is no such process, remove %s.",
                    seen.get("process"),
                    seen.get("host"),
                    self._what,
                    self._path,
                )
            time.sleep(_POLL)
            now = self._read()
            if now != seen:
                seen, since = now, time.monotonic()

    def _take_away(self, dead: dict[str, Any]) -> None:
        # Of several processes that find the lock dead one renames it. Whoever was late would rename the lock that the
        # first one has made meanwhile, and gives it back.
        place = self._path.with_name(f".{secrets.token_hex(8)}.lock")
        try:
            os.rename(self._path, place)
        except FileNotFoundError:
            return
        if _read(place) != dead:
            try:
                os.link(place, self._path)
            except OSError:
                # Its holder will find that it lost the lock, and stop.
                pass
        else:
            logging.getLogger("keras_clip").warning(
                "Process %s on %s died while it built %s; this process goes on.",
                dead.get("process"),
                dead.get("host"),
                self._what,
            )
        place.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            try:
                if not self._is_own():
                    return
                self._holder["beat"] += 1
                files.write_json(self._path, self._holder)
            except OSError:
                # The next beat may succeed; if none does, `require_held` says so.
                continue

    def _is_own(self) -> bool:
        return (self._read() or _UNREADABLE)["token"] == self._holder["token"]

    def _read(self) -> dict[str, Any] | None:
        return _read(self._path)


def _read(path: Path) -> dict[str, Any] | None:
    """The holder of a lock file; None if there is no file."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return dict(_UNREADABLE)
    return holder if isinstance(holder, dict) and "token" in holder else dict(_UNREADABLE)


def _this_process() -> dict[str, Any]:
    process = os.getpid()
    return {"process": process, "started": _start_of(process), "machine": _machine(), "host": socket.gethostname()}


def _machine() -> str:
    """Identifies the PID namespace of a process.

    Hosts may share a name, and containers of a host number their processes separately.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{uuid.getnode():x} {socket.gethostname()}"


def _start_of(process: int) -> str | None:
    """When a process started, as opposed to a later one of the same number; None if it is not known to run."""
    try:
        # The name of the program, in parentheses, may contain spaces. The 22nd field is the start.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        # A zombie has ended, and only waits for its parent to read its status.
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return None


def _is_dead(holder: dict[str, Any], silence: float) -> bool:
    if holder.get("machine") == _machine():
        if holder["started"] is not None:
            return _start_of(holder["process"]) != holder["started"]
        if not _runs(holder["process"]):
            return True
    return silence >= _SILENCE


def _runs(process: int) -> bool:
    """Whether a process of this machine may run."""
    if os.name != "posix":
        # On Windows, os.kill(pid, 0) would terminate the process.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
