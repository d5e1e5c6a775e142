"""Programs measured in turn, A B A B, each in a process of its own that lives through all rounds.

A contestant reads lines of JSON and answers each with one: first its task, whose answer is what
getting ready took, then "measure", as often as it is told, and "end". What it prints otherwise
goes with its errors; one that ends early has failed, and its last word there is the reason. Needs
the standard library alone, so that programs of other environments can take part.
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

SECONDS = 2.0  # A stretch lasts at least so long.


class Failed(Exception):
    """A contestant that ended early; the message is its last word."""


class Contestant:
    """A program in a process of its own; also a context manager, which ends it.

    Args:
        command: what starts it.
        task: what it is asked for, JSON.
        env: its environment.
        folder: where it runs.

    Raises:
        Failed: it cannot be started, or ended before its answer.

    Attributes:
        facts: its answer to the task.
        seconds: from the start of its process to that answer.
    """

    def __init__(self, command: Sequence[str], task: dict, env: dict[str, str], folder: Any):
        self._errors = tempfile.TemporaryFile("w+")
        began = time.perf_counter()
        try:
            self._process = subprocess.Popen(
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
        """Its answer; raises Failed where there is none."""
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            try:
                status = self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:  # Alive, and what it says is no answer.
                status = "unknown"
            self._errors.seek(0)
            words = self._errors.read().split("\n")
            last = next((line.strip() for line in reversed(words) if line.strip()), "no word")
            raise Failed(f"status {status}: {last[:200]}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def serve(prepare: Callable[[dict], tuple[dict, Callable[[], dict]]],
          peak_bytes: Callable[[], int]) -> None:
    """The contestant's side: gets ready, measures when asked, and ends.

    Args:
        prepare: task -> (what there is to tell of getting ready, `measure`), where `measure()`
            works for a stretch and gives `seconds` and the `count` of things done in them.
        peak_bytes: the most memory that was held until now.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.

    def answer(what):
        print(json.dumps(what), file=answers, flush=True)

    facts, measure = prepare(json.loads(sys.stdin.readline()))
    answer(facts)
    while json.loads(sys.stdin.readline()) == "measure":
        answer(measure())
    answer({"peak_bytes": peak_bytes()})


def product_size(platform: str) -> int:
    """Rows of the square matrices whose product tells the peak of a device."""
    return 2048 if platform == "cpu" else 16384


def resident_peak() -> int:
    """The most memory that this process held, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stretch(call: Callable[[], Any], count: int, wait: Callable[[], Any] = lambda: None,
            fewest: int = 2) -> Callable[[], dict]:
    """A `measure` that repeats a call of `count` things for a while, and then waits for them."""
    def measure():
        began, calls = time.perf_counter(), 0
        while calls < fewest or time.perf_counter() - began < SECONDS:
            call()
            calls += 1
        wait()
        return {"seconds": time.perf_counter() - began, "count": calls * count}

    return measure


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def in_turn(starts: dict[str, Callable[[], Contestant]], rounds: int) -> dict[str, dict]:
    """Lets contestants get ready one after the other, then measure in turn.

    Args:
        starts: by name, what starts each.
        rounds: stretches of each.

    Returns:
        By name: `facts`, `seconds` (a thing, one entry a round) and `peak_bytes`, or `failed`, the
        reason.
    """
    found, there = {}, {}
    try:
        for name, start in starts.items():
            try:
                there[name] = start()
                found[name] = {"facts": there[name].facts, "seconds": []}
            except Failed as error:
                found[name] = {"failed": str(error)}

        def told(what):
            for name, contestant in list(there.items()):
                try:
                    yield name, contestant.ask(what)
                except Failed as error:
                    there.pop(name).__exit__()
                    found[name] = {"failed": str(error)}

        for _ in range(rounds):
            for name, stretch in told("measure"):
                found[name]["seconds"].append(stretch["seconds"] / stretch["count"])
        for name, last in told("end"):
            found[name].update(last)
    finally:
        for contestant in there.values():
            contestant.__exit__()
    return found


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Things a second: `median`, `low` and `high`, of the seconds that one took in each round."""
    return {
        "median": 1 / statistics.median(seconds),
        "low": 1 / max(seconds),
        "high": 1 / min(seconds),
    }
