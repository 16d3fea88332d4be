"""Runs Python in a new process: for another backend, for logical devices, or to test imports."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LOGICAL_DEVICES = """
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * {devices}
)
# Each graph runs for a few steps only, so TensorFlow does not spend time on optimizing it.
tf.config.optimizer.set_experimental_options({{"disable_meta_optimizer": True}})
"""


def run_python(
    script: str | Path,
    *arguments: str,
    backend: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> str:
    """Runs a script and returns its output; raises an `AssertionError` with the output if it fails or hangs.

    Args:
        script: a `Path` to a file, or source text, which may be indented as a whole.
        arguments: the values of `sys.argv[1:]`.
        backend: the `KERAS_BACKEND` of the process; by default, that of this process.
        env: variables that are added to the environment of this process.
        timeout: seconds.

    Returns:
        The standard output.
    """
    environment = {**os.environ, **(env or {})}
    if backend is not None:
        environment["KERAS_BACKEND"] = backend
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [str(script)] if isinstance(script, Path) else ["-c", textwrap.dedent(script)]
    try:
        done = subprocess.run(
            [sys.executable, *command, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        output = "\n".join(_text(part) for part in (error.stdout, error.stderr))
        raise AssertionError(f"The process did not end within {timeout} seconds. Received: {output}") from None
    if done.returncode:
        raise AssertionError(f"The process ended with status {done.returncode}.\n{done.stdout}\n{done.stderr}")
    return done.stdout


def run_distributed(source: str, devices: int = 2, **options) -> str:
    """`run_python` with `devices` logical CPU devices, on TensorFlow or JAX.

    Args:
        source: source text; on TensorFlow, the devices exist before its first line runs.
        devices: number of devices.
        options: arguments of `run_python`.

    Returns:
        The standard output.
    """
    backend = options.get("backend") or os.environ["KERAS_BACKEND"]
    env = dict(options.pop("env", None) or {})
    source = textwrap.dedent(source)
    if backend == "tensorflow":
        source = LOGICAL_DEVICES.format(devices=devices) + source
    env.setdefault("XLA_FLAGS", xla_flags(f"--xla_force_host_platform_device_count={devices}"))
    return run_python(source, env=env, **options)


# Forks for each line of its input: the environment, the arguments with the source text first, and the files for the
# output. It prints the status of each. Imports start no threads that a forked process would miss.
FORKING = """
import json, os, sys
for line in sys.stdin:
    environment, (source, *arguments), files = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        for descriptor, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
        try:
            os.environ.clear()
            os.environ.update(environment)
            sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
            sys.argv[1:] = arguments
            exec(source, {"__name__": "__main__"})
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextlib.contextmanager
def forking(imports: str, backend: str | None = None) -> Iterator[Callable]:
    """Starts a process that does slow imports once, and forks for each source text that it is given.

    Args:
        imports: source text that imports modules. It must not start a computation.
        backend: the `KERAS_BACKEND` of the process; by default, that of this process.

    Returns:
        A context manager. It gives a function with arguments as of `subprocess.run`: the command
        `[sys.executable, "-c", source, *arguments]`, and `env`. The function returns a `CompletedProcess` with text.
    """
    environment = {**os.environ, "KERAS_BACKEND": backend or os.environ["KERAS_BACKEND"]}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), environment.get("PYTHONPATH", "")])
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-c", imports + FORKING],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):

        def run(command, *, env, **_):
            assert command[:2] == [sys.executable, "-c"] and env["KERAS_BACKEND"] == environment["KERAS_BACKEND"]
            files = [Path(folder, name) for name in ("stdout", "stderr")]
            for file in files:
                file.write_text("")
            process.stdin.write(json.dumps([env, command[2:], list(map(str, files))]) + "\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            return subprocess.CompletedProcess(command, status, *(file.read_text(errors="replace") for file in files))

        yield run
        process.stdin.close()


def xla_flags(*flags):
    """Returns the value of XLA_FLAGS for a process that has `flags` beside those of this process."""
    return " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def free_ports(count):
    """Returns the first of `count` consecutive ports of the loopback device on which no process listens."""
    while True:
        sockets = [socket.socket() for _ in range(count)]
        try:
            sockets[0].bind(("127.0.0.1", 0))
            first = sockets[0].getsockname()[1]
            for i, other in enumerate(sockets[1:], start=1):
                other.bind(("127.0.0.1", first + i))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()


def _text(part: str | bytes | None) -> str:
    return part.decode(errors="replace") if isinstance(part, bytes) else part or ""
