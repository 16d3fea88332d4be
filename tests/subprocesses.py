"""Runs Python in a new process: for another backend, for logical devices, or to test imports."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LOGICAL_DEVICES = """
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * {devices}
)
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
