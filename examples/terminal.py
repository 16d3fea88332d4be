"""Runs the scripts as commands: `--help` before the frameworks load, a quiet start, errors in one line, a clean Ctrl-C.

A script defines `parse_args` and calls `terminal.start(parse_args)` before its imports of Keras, which take seconds,
and `terminal.run(main)` at its end, both under `if __name__ == "__main__"`.
"""

import argparse
import contextlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

# Their C++ libraries write to the terminal while they are loaded, before they read any setting of the log level.
FRAMEWORKS = ("tensorflow", "tensorflow_text", "jax", "torch")
ERROR, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """A parser of a script's arguments with `--debug`, whose errors are one line.

    Args:
        description: str. The docstring of the script.
        **options: see `argparse.ArgumentParser`.
    """

    def __init__(self, description: str, **options):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str):
        """Ends the script with status 2 and the message in one line."""
        self.exit(ERROR, f"{self.prog}: error: {message.rstrip('.')}. See {self.prog} --help.\n")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how sources are read; see `source_options`."""
    parser.add_argument("--image", help="extension of the images of tars and folders, or column of tables and records")
    parser.add_argument("--caption", help="extension, column or key of the .json that has the captions")
    parser.add_argument("--delimiter", "--separator", help="what separates the columns of tables, such as ';'")


def add_max_broken_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--max-broken`, for `max_broken` of sources and of `evaluate`."""
    parser.add_argument(
        "--max-broken", type=float, default=0.05, help="fraction of the samples that may be unreadable; default: 0.05"
    )


def source_options(args: argparse.Namespace) -> dict:
    """The options of a source for `image_text_pairs`, from the arguments of `add_source_arguments`."""
    if args.image and not args.caption:
        raise SystemExit(f"--image goes with --caption. Received: --image {args.image}. Name both.")
    options = {"mapping": (args.image, args.caption) if args.caption else None, "delimiter": args.delimiter}
    return {name: value for name, value in options.items() if value is not None}


def start(parse_args: Callable) -> None:
    """Handles `--help` and invalid arguments, and suppresses the output of frameworks that are imported later.

    Args:
        parse_args: function of the script that parses `sys.argv` if its argument is None.
    """
    parse_args(None)
    # This also handles exceptions during the imports of the script, before `run`.
    sys.excepthook = lambda kind, error, trace: sys.exit(_report(error))
    # Level 3 hides errors that the C++ libraries log: failures raise exceptions in Python.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.meta_path.insert(0, _QuietFinder())


def run(main: Callable) -> None:
    """Runs a script's `main`; an error prints one line with status 2, Ctrl-C prints one line with status 130.

    Args:
        main: function without required arguments.
    """
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_report(error))
    except SystemExit as stop:
        sys.exit(_report(stop) if isinstance(stop.code, str) else stop.code)


def _report(error: BaseException) -> int:
    """Prints an exception in one line, or its traceback if `--debug` was given; returns the exit status."""
    name = Path(sys.argv[0]).name
    if isinstance(error, KeyboardInterrupt):
        print(f"\n{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    if "--debug" in sys.argv[1:]:
        traceback.print_exception(error)
    else:
        text = " ".join(str(error).split()) or type(error).__name__
        # Names of files and of samples may hold what controls a terminal. The library may be what failed to import.
        text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
        print(f"{name}: error: {text}", file=sys.stderr)
    return ERROR


class _QuietFinder(importlib.abc.MetaPathFinder):
    """Finds the frameworks, and loads them with the standard error suppressed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in FRAMEWORKS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _QuietLoader(spec.loader)
        return spec


class _QuietLoader(importlib.abc.Loader):
    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        with _held_back():
            self._loader.exec_module(module)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hides the standard error of the process, also that of C++ code, unless an exception is raised."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
