"""Measures programs in turn, A B A B, each in its own process that stays alive for all rounds.

A contestant reads lines of JSON and answers each with one line. The first line is its task; the
answer is a dict of facts. Then follow any number of "measure" and one "end". Its other output goes
to standard error. A contestant that ends early has failed; its last line of errors is the reason.
This file needs only the standard library, so that programs in other environments can use it.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

SECONDS = 2.0  # A stretch lasts at least this long.


class Failed(Exception):
    """A contestant that ended early; the message is its last line of errors."""


class Contestant:
    """A program in its own process; as a context manager it ends the process.

    Args:
        command: starts the program.
        task: its task, as JSON.
        env: its environment.
        folder: its working directory.

    Raises:
        Failed: it cannot be started, or it ended before its answer.

    Attributes:
        process: the `subprocess.Popen` of it.
        facts: its answer to the task.
        seconds: from the start of its process to that answer.
    """

    def __init__(self, command: Sequence[str], task: dict, env: dict[str, str], folder: Any):
        self._errors = tempfile.TemporaryFile("w+")
        began = time.perf_counter()
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                text=True, env=env, cwd=folder,
            )
        except OSError as error:
            self._errors.close()
            raise Failed(str(error)) from None
        try:
            self.facts = self.ask(task)
        except BaseException:
            self.__exit__()
            raise
        self.seconds = time.perf_counter() - began

    def ask(self, what: Any) -> Any:
        """The contestant's answer; raises Failed if there is none."""
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            try:
                status = self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:  # It is alive, and what it wrote is no answer.
                status = "unknown"
            self._errors.seek(0)
            words = self._errors.read().split("\n")
            last = next((line.strip() for line in reversed(words) if line.strip()), "no message")
            raise Failed(f"status {status}: {last[:200]}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self._errors.close()


def serve(prepare: Callable[[dict], tuple[dict, Callable[[], dict]]],
          peak_bytes: Callable[[], int]) -> None:
    """The contestant's side: prepares, measures when asked, and ends.

    Args:
        prepare: task -> (facts, `measure`), where `measure()` works for a stretch and returns its
            `seconds` and the `count` of things done.
        peak_bytes: returns the maximum of memory held so far.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Output of libraries is no answer.

    def answer(what):
        print(json.dumps(what), file=answers, flush=True)

    facts, measure = prepare(json.loads(sys.stdin.readline()))
    answer(facts)
    while json.loads(sys.stdin.readline()) == "measure":
        answer(measure())
    answer({"peak_bytes": peak_bytes()})


def product_size(platform: str) -> int:
    """The number of rows of the square matrices whose product measures a device's peak."""
    return 2048 if platform == "cpu" else 16384


def resident_peak() -> int:
    """The maximum of memory that this process held, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stretch(call: Callable[[], Any], count: int, wait: Callable[[], Any] = lambda: None,
            fewest: int = 2) -> Callable[[], dict]:
    """Returns a `measure` that repeats a call of `count` things and then waits for them."""
    def measure():
        began, calls = time.perf_counter(), 0
        while calls < fewest or time.perf_counter() - began < SECONDS:
            call()
            calls += 1
        wait()
        return {"seconds": time.perf_counter() - began, "count": calls * count}

    return measure


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def in_turn(starts: dict[str, Callable[[], Contestant]], rounds: int) -> dict[str, dict]:
    """Lets contestants prepare one after the other, then measures them in turn.

    Args:
        starts: functions that start the contestants, by name.
        rounds: stretches of each.

    Returns:
        By name: `facts`, `seconds` (per thing, one entry per round) and `peak_bytes`; or `failed`,
        the reason.
    """
    results, running = {}, {}
    try:
        for name, start in starts.items():
            try:
                running[name] = start()
                results[name] = {"facts": running[name].facts, "seconds": []}
            except Failed as error:
                results[name] = {"failed": str(error)}

        def answers(question):
            for name, contestant in list(running.items()):
                try:
                    yield name, contestant.ask(question)
                except Failed as error:
                    running.pop(name).__exit__()
                    results[name] = {"failed": str(error)}

        for _ in range(rounds):
            for name, stretch in answers("measure"):
                results[name]["seconds"].append(stretch["seconds"] / stretch["count"])
        for name, last in answers("end"):
            results[name].update(last)
    finally:
        for contestant in running.values():
            contestant.__exit__()
    return results


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """`median`, `low` and `high` of things per second, from the seconds per thing of each round."""
    return {
        "median": 1 / statistics.median(seconds),
        "low": 1 / max(seconds),
        "high": 1 / min(seconds),
    }
