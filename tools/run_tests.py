"""Runs the tests in lanes, several processes at a time, and ends with one line of totals.

    python tools/run_tests.py [--lanes free tensorflow jax torch demo] [--jobs 1] [pytest's arguments]

The lane of a backend runs the tests that depend on the backend; `free` runs those that do not, once; `demo` runs the
long test of the demo beside the others. With several jobs, a process that finds no lane to start joins a lane that
still runs: the processes of a lane claim its modules one at a time (see tests/conftest.py), so that all cores are busy
to the end. The output of pytest is then shown when its process has ended.

The last lines are the ten slowest tests, the modules above the budget of 60 s, and the outcomes of each lane. After all
lanes have run, exits with status 1 if any test failed, any process broke or no test ran.
"""

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = "tests/examples/test_demo.py"
# The backend of each lane and the tests that it selects, in the order in which lanes start. `free` is last: its modules
# are short, and its processes import the least.
LANES = {
    "demo": ("tensorflow", "free"),
    "tensorflow": ("tensorflow", "backend"),
    "jax": ("jax", "backend"),
    "torch": ("torch", "backend"),
    "free": ("tensorflow", "free"),
}
OUTCOMES = ("passed", "failed", "skipped")
# Skips the shutdown of the interpreter, which takes minutes to free the programs that the frameworks have compiled.
RUN_AND_EXIT = """
import os, sys, pytest
status = int(pytest.main(sys.argv[1:]))
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
MODULE_BUDGET = 60
NO_TESTS_COLLECTED = 5


@dataclass
class Process:
    """One process of pytest: its lane, its report, its exit status and its CPU time."""

    lane: str
    report: Path
    status: int | None = None
    cpu_seconds: float = 0.0


class Schedule:
    """Selects the next process: one of a lane that has not started, or else another one of a lane that still runs."""

    def __init__(self, lanes):
        self._waiting = [lane for lane in LANES if lane in lanes]
        self._started, self._ended = Counter(), set()
        self._lock = threading.Lock()

    def next(self):
        """Returns the lane and the number of its process, from 1; None if no process is left to start."""
        with self._lock:
            # The demo is one module, so that a second process would have nothing to run.
            open_lanes = [lane for lane in self._started if lane not in self._ended and lane != "demo"]
            if self._waiting:
                lane = self._waiting.pop(0)
            elif open_lanes:
                lane = min(open_lanes, key=self._started.get)
            else:
                return None
            self._started[lane] += 1
            return lane, self._started[lane]

    def end(self, lane):
        """Records that a process of the lane has ended, which means that all modules of the lane are claimed."""
        with self._lock:
            self._ended.add(lane)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=tuple(LANES))
    parser.add_argument("--jobs", type=int, default=1, help="number of processes that run at a time")
    parser.add_argument("--reports", type=Path, default=REPOSITORY / "runs" / "tests", help="folder of JUnit reports")
    args, pytest_arguments = parser.parse_known_args(argv)
    lanes = set(args.lanes)
    if any((REPOSITORY / argument.split("::")[0]).exists() for argument in pytest_arguments):
        # If files are named, the demo runs only as one of them.
        lanes.discard("demo")
    start = time.monotonic()
    processes = run_lanes(lanes, args.jobs, args.reports, pytest_arguments)
    return summarize(processes, time.monotonic() - start)


def run_lanes(lanes, jobs, reports, pytest_arguments):
    """Runs the lanes and returns their processes, which have ended."""
    reports.mkdir(parents=True, exist_ok=True)
    for old in reports.glob("*.xml"):
        old.unlink()
    schedule, processes = Schedule(lanes), []

    def work():
        while (following := schedule.next()) is not None:
            lane, number = following
            process = Process(lane, reports / f"{lane}-{number}.xml")
            processes.append(process)
            run_tests(process, jobs, Path(scratch), pytest_arguments)
            schedule.end(lane)

    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for worker in [pool.submit(work) for _ in range(jobs)]:
            worker.result()
    return processes


def run_tests(process, jobs, scratch, pytest_arguments):
    """Runs pytest, beside other processes if there are several jobs, and records the exit status."""
    backend, selection = LANES[process.lane]
    is_alone = jobs == 1
    environment = {**os.environ, "KERAS_BACKEND": backend}
    # On JAX, compilation takes most of the time, and several tests and their processes compile the same programs.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(scratch / "jax"))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if not is_alone:
        # If other processes use the cores, threads of OpenMP wait for each other, and small products can take a hundred
        # times as long.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    claims = scratch / f"{backend}-{selection}"
    claims.mkdir(exist_ok=True)
    files = [DEMO] if process.lane == "demo" else []
    print(f"\n{process.report.stem}", flush=True)
    pytest = subprocess.Popen(
        [sys.executable, "-c", RUN_AND_EXIT, "-q", f"--lane={selection}", f"--claims={claims}"]
        + [f"--junitxml={process.report}", *files, *pytest_arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=None if is_alone else subprocess.PIPE,
        stderr=None if is_alone else subprocess.STDOUT,
    )
    output = b"" if is_alone else pytest.stdout.read()
    # Unlike `Popen.wait`, this also returns the CPU time of the process and its children.
    _, status, usage = os.wait4(pytest.pid, 0)
    process.status = pytest.returncode = os.waitstatus_to_exitcode(status)
    process.cpu_seconds = usage.ru_utime + usage.ru_stime
    if not is_alone:
        print(f"\n{process.report.stem}\n{output.decode(errors='replace')}", end="", flush=True)


def summarize(processes, seconds):
    """Prints the slowest tests, the outcomes of each lane and the total; returns the exit status."""
    rows = {lane: Counter() for lane in LANES if any(process.lane == lane for process in processes)}
    times, broken, cpu_seconds = [], [], Counter()
    for process in processes:
        row = count_outcomes(process.report)
        rows[process.lane].update(row)
        cpu_seconds[process.lane] += process.cpu_seconds
        times += [(float(case.get("time", 0)), process.lane, case) for case in cases(process.report)]
        if process.status not in (0, NO_TESTS_COLLECTED) and not row["failed"]:
            broken.append(f"{process.report.stem} (pytest ended with status {process.status})")
    print_slowest(times)
    print()
    for lane, row in rows.items():
        print(f"{lane:10}  {describe(row)} in {cpu_seconds[lane]:.0f} CPU seconds")
    total = sum(rows.values(), Counter())
    if broken:
        print(f"broken: {', '.join(broken)}")
    print(f"{describe(total)} in {seconds:.0f} s", flush=True)
    return int(bool(total["failed"] or broken or not total))


def print_slowest(times):
    """Prints the ten slowest tests of all lanes, and the modules that exceed their budget."""
    print("\nslowest tests")
    for seconds, lane, case in sorted(times, key=lambda row: -row[0])[:10]:
        print(f"{seconds:7.1f} s  {lane:10}  {case.get('classname')}::{case.get('name')}")
    modules = Counter()
    for seconds, lane, case in times:
        modules[lane, re.match(r"(?:.*?\.)?test_\w+|", case.get("classname") or "").group()] += seconds
    if above := [entry for entry in modules.most_common() if entry[1] > MODULE_BUDGET]:
        print(f"\nmodules above {MODULE_BUDGET} s")
    for (lane, module), seconds in above:
        print(f"{seconds:7.1f} s  {lane:10}  {module}")


def count_outcomes(report):
    """Counts the outcomes in pytest's report; all are 0 if the process died before it wrote a report."""
    # A test that fails in its teardown too is listed twice.
    failed = {case_name(case) for tag in ("failure", "error") for case in cases(report, tag)}
    skipped = {case_name(case) for case in cases(report, "skipped")} - failed
    everything = {case_name(case) for case in cases(report)}
    return {"passed": len(everything - failed - skipped), "failed": len(failed), "skipped": len(skipped)}


def cases(report, tag=None):
    """Returns the test cases in pytest's report; with `tag`, only those with a child of this tag."""
    if not report.exists():
        return []
    every = ElementTree.parse(report).iter("testcase")
    return [case for case in every if tag is None or case.find(tag) is not None]


def case_name(case):
    return case.get("classname"), case.get("name")


def describe(row):
    return ", ".join(f"{row[outcome]} {outcome}" for outcome in OUTCOMES)


if __name__ == "__main__":
    sys.exit(main())
