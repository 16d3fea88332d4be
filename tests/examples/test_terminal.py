"""The scripts as commands: `--help` without a framework, a quiet start, one-line errors, a clean Ctrl-C."""

import os
import subprocess
import sys

import pytest
from subprocesses import REPOSITORY, run_python

EXAMPLES = sorted(path for path in (REPOSITORY / "examples").glob("*.py") if path.name != "terminal.py")
# All tools that are commands. The others are imported by `benchmark.py`.
TOOLS = sorted(path for path in (REPOSITORY / "tools").glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
HELP = """
import contextlib, io, os, runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    sys.path[0] = os.path.dirname(script)
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0 and "usage:" in text.getvalue(), script
    heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib", "keras_clip", "sklearn"} & set(sys.modules)
    print(os.path.basename(script), sorted(heavy))
"""


@pytest.mark.slow
@pytest.mark.backend_free
def test_help_loads_no_framework():
    lines = run_python(HELP, *map(str, [*EXAMPLES, *TOOLS])).splitlines()
    assert lines == [f"{path.name} []" for path in [*EXAMPLES, *TOOLS]] and len(EXAMPLES) >= 9


def command(tmp_path, body, *arguments):
    """Runs a script with this body of `main` as a command; returns its status, standard output and standard error."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY / 'examples')!r})\nimport terminal\n"
        "def parse_args(argv):\n    parser = terminal.Parser('A script.')\n"
        "    parser.add_argument('--count', type=int)\n    return parser.parse_args(argv)\n"
        "if __name__ == '__main__':\n    terminal.start(parse_args)\n"
        f"def main():\n    {body}\nif __name__ == '__main__':\n    terminal.run(main)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    env.pop("TF_CPP_MIN_LOG_LEVEL", None)
    done = subprocess.run([sys.executable, script, *arguments], env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


ENDS = {
    "an error": (r"raise ValueError('Received: a\n  b.')", 2, "script.py: error: Received: a b.\n"),
    "an error without a message": ("raise MemoryError", 2, "script.py: error: MemoryError\n"),
    "a message": ("raise SystemExit('No such file.')", 2, "script.py: error: No such file.\n"),
    "a status": ("raise SystemExit(3)", 3, ""),
    "Ctrl-C": ("raise KeyboardInterrupt", 130, "\nscript.py: interrupted\n"),
    "the end": ("print('done')", 0, ""),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("body, status, text", ENDS.values(), ids=ENDS)
def test_ends(body, status, text, tmp_path):
    code, output, errors = command(tmp_path, body)
    assert (code, errors) == (status, text) and output == ("done\n" if "print" in body else "")


IMPORTS = {
    "an error": ("raise ImportError('no keras')", 2, "script.py: error: no keras\n"),
    "Ctrl-C": ("raise KeyboardInterrupt", 130, "\nscript.py: interrupted\n"),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("body, status, text", IMPORTS.values(), ids=IMPORTS)
def test_imports_after_the_start_end_alike(body, status, text, tmp_path):
    (tmp_path / "stub.py").write_text(body)
    start = "import sys\nsys.path.insert(0, {!r})\nimport terminal\nterminal.start(lambda argv: None)\nimport stub\n"
    (tmp_path / "script.py").write_text(start.format(str(REPOSITORY / "examples")))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, text)


@pytest.mark.backend_free
def test_debug_shows_where(tmp_path):
    code, _, errors = command(tmp_path, "raise ValueError('wrong')", "--debug")
    assert code == 2 and "Traceback" in errors and "ValueError: wrong" in errors


@pytest.mark.backend_free
def test_a_mistake_in_the_arguments_is_one_line(tmp_path):
    code, output, errors = command(tmp_path, "print('not reached')", "--count", "many")
    assert code == 2 and output == ""
    assert errors == "script.py: error: argument --count: invalid int value: 'many'. See script.py --help.\n"


@pytest.mark.backend_free
def test_output_of_an_import_is_shown_when_it_fails(tmp_path):
    (tmp_path / "jax.py").write_text("import os\nos.write(2, b'library missing; ')\nraise ImportError('no jax')")
    code, _, errors = command(tmp_path, "import jax")
    assert code == 2 and errors == "library missing; script.py: error: no jax\n"


@pytest.mark.slow
def test_frameworks_start_quietly(tmp_path):
    lines = [
        "import keras, numpy as np, tensorflow",
        "model = keras.Sequential([keras.layers.Dense(2)])",
        "model.compile('sgd', 'mse')",
        "model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)",
        "print(model.predict(np.ones((1, 3)), verbose=0).shape)",
    ]
    code, output, errors = command(tmp_path, "; ".join(lines))
    assert (code, errors) == (0, "") and "(1, 2)" in output
