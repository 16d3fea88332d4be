"""Runs the tests on each backend, one process each, and ends with one line of totals.

    python tools/run_tests.py [--backends tensorflow jax torch] [--jobs 1] [pytest's arguments]

With more jobs than one, so many backends run at a time, and what pytest prints comes when it has ended.
Exits with 1 if any test failed or any process broke, after all backends have run.
"""

import argparse
import concurrent.futures
import functools
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
REPOSITORY = Path(__file__).resolve().parents[1]
OUTCOMES = ("passed", "failed", "skipped")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--jobs", type=int, default=1, help="how many backends run at a time")
    args, pytest_arguments = parser.parse_known_args(argv)
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        run = functools.partial(run_tests, arguments=pytest_arguments, jobs=args.jobs)
        outcomes = dict(zip(args.backends, pool.map(run, args.backends), strict=True))
    counts = {backend: row for backend, (row, _) in outcomes.items()}
    broken = [
        f"{backend} (pytest ended with status {status})"
        for backend, (row, status) in outcomes.items()
        if status and not row["failed"]
    ]
    print()
    for backend, row in counts.items():
        print(f"{backend:10}  {describe(row)}")
    total = {outcome: sum(row[outcome] for row in counts.values()) for outcome in OUTCOMES}
    if broken:
        print(f"broken: {', '.join(broken)}")
    print(f"{describe(total)} in {time.monotonic() - start:.0f} s", flush=True)
    return int(bool(total["failed"] or broken))


def run_tests(backend, arguments, jobs):
    """Runs pytest beside others; returns the number of tests of each outcome and the exit status."""
    is_alone = jobs == 1
    environment = {**os.environ, "KERAS_BACKEND": backend}
    if not is_alone:
        # Threads of OpenMP that wait for one another on a core that another backend has make small products slow, up to
        # a hundred times.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    print(f"\n{backend}", flush=True)
    report = REPOSITORY / "runs" / "tests" / f"{backend}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=None if is_alone else subprocess.PIPE,
        stderr=None if is_alone else subprocess.STDOUT,
    )
    if not is_alone:
        print(f"\n{backend}\n{process.stdout.decode(errors='replace')}", end="", flush=True)
    return count_outcomes(report), process.returncode


def count_outcomes(report):
    """Counts the outcomes in pytest's report; none if the process died before it wrote one."""
    if not report.exists():
        return dict.fromkeys(OUTCOMES, 0)
    # A test whose clean-up fails too stands there twice.
    failed = {case_name(case) for tag in ("failure", "error") for case in cases(report, tag)}
    skipped = {case_name(case) for case in cases(report, "skipped")} - failed
    everything = {case_name(case) for case in ElementTree.parse(report).iter("testcase")}
    return {"passed": len(everything - failed - skipped), "failed": len(failed), "skipped": len(skipped)}


def cases(report, tag):
    return (case for case in ElementTree.parse(report).iter("testcase") if case.find(tag) is not None)


def case_name(case):
    return case.get("classname"), case.get("name")


def describe(row):
    return ", ".join(f"{row[outcome]} {outcome}" for outcome in OUTCOMES)


if __name__ == "__main__":
    sys.exit(main())
