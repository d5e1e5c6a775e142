"""The logs of a run: metrics.jsonl, TensorBoard event files, a progress bar or plain lines.

A step here is the number of updates done. On resuming, what was logged after the step of the
checkpoint is dropped, so each step stands once in both records. In a run of several processes
one of them logs.
"""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import tqdm
from etils import epath

from ddpm_jax.runtime import files
from ddpm_jax.runtime.progress import format_duration, on_screen
from ddpm_jax.workdir.goodput import Goodput
from ddpm_jax.workdir.metrics_file import MetricsFile, read_metrics
from ddpm_jax.workdir.tensorboard_writer import EventFiles
from ddpm_jax.workdir.wandb_writer import WandbWriter

RECENT = 10  # Readings that the remaining time goes by.
_LOSSES = ("loss", "heldout_loss")
_SPEEDS = ("images_per_second", "steps_per_second", "eta")


class Rate:
    """Speed and remaining time, by the wall clock.

    Args:
        start_step: updates done when this start began.
        num_steps: updates when the run is complete.
        batch_size: images per step, over all devices.
        clock: gives seconds from any origin.
    """

    def __init__(
        self,
        *,
        start_step: int,
        num_steps: int,
        batch_size: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._num_steps, self._batch_size, self._clock = num_steps, batch_size, clock
        self._last_time, self._last_step, self._paused = clock(), start_step, 0.0
        self._recent = collections.deque([(self._last_time, start_step)], RECENT)

    def compiled(self, step: int) -> None:
        """The steps until this one, which waited for compilation, say nothing of later ones."""
        self._recent.clear()
        self._recent.append((self._clock(), step))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time inside: `with rate.paused(): sample()`."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def read(self, step: int) -> dict[str, float]:
        """The speed since the last reading, and the remaining time.

        Returns:
            images_per_second and steps_per_second, without paused time; and eta in seconds, by
            the last `RECENT` readings with paused time, since pauses recur. NaN where no step or
            no time has passed.
        """
        now = self._clock()
        working = now - self._last_time - self._paused
        speed = _ratio(step - self._last_step, working)
        then, step_then = self._recent[0]
        seconds_a_step = _ratio(now - then, step - step_then)
        self._recent.append((now, step))
        self._last_time, self._last_step, self._paused = now, step, 0.0
        return {
            "images_per_second": speed * self._batch_size,
            "steps_per_second": speed,
            "eta": seconds_a_step * (self._num_steps - step),
        }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


class Logs:
    """The logs of one start of a run; also a context manager.

    Args:
        workdir: gets `metrics.jsonl`, and the event files in `tensorboard/`.
        start_step: updates done; rows and events of later steps are dropped.
        num_steps: updates when the run is complete, the length of the bar.
        progress: True shows a bar on stderr, False prints lines on stdout instead; None
            shows the bar where `on_screen` says so.
        also: a `WandbWriter` that gets the scalars and pictures too, or None.

    Attributes:
        folder: local, for anything else that TensorBoard should show.
        goodput: of the run (see `Goodput`).
    """

    def __init__(
        self, workdir, *, start_step: int, num_steps: int, progress: bool | None = None,
        also: WandbWriter | None = None,
    ):
        self._start_step, self._num_steps = start_step, num_steps
        before = read_metrics(workdir) if files.path(workdir).exists() else []
        self.goodput = Goodput(before, start_step)
        self._rows = MetricsFile(workdir, start_step)
        self._events = EventFiles(
            files.path(workdir) / "tensorboard", purge_step=start_step + 1
        )
        self.folder = self._events.folder
        self._also = also
        show = on_screen() if progress is None else progress
        bar = dict(initial=start_step, total=num_steps, unit="step", dynamic_ncols=True)
        self._bar = tqdm.tqdm(**bar) if show else None

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a row {"step": ..., **metrics} to metrics.jsonl, and scalars to TensorBoard.

        With steps_per_second among them the row also has what `Goodput` says of the run's time.
        JSON has no NaN or infinity: the row has null there, TensorBoard the value itself.
        Without a bar a line on stdout shows the step and, if they are among the metrics, the
        losses, images_per_second and eta; a bar shows the loss at its end, and a line comes with
        a held-out loss only.
        """
        metrics = {name: float(value) for name, value in metrics.items()}
        if "steps_per_second" in metrics:
            times = self.goodput.row(int(step), metrics["steps_per_second"])
        else:
            times = {}
        row = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._rows.write({"step": int(step), **row, **times})
        for name, value in metrics.items():
            self._events.scalar(tag(name), value, step)
        if self._also is not None:
            self._also.write(step, {tag(name): value for name, value in metrics.items()})
        if self._bar is None or "heldout_loss" in metrics:
            self.say(_line(step, self._num_steps, metrics))
        if self._bar is not None and "loss" in metrics:
            self._bar.set_postfix_str(f"loss {metrics['loss']:.4g}", refresh=False)

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def images(self, name: str, uint8_grid: np.ndarray, step: int) -> None:
        """Adds a picture, uint8 [h, w, c] with c of 1, 3 or 4, to TensorBoard."""
        self._events.image(name, uint8_grid, step)
        if self._also is not None:
            self._also.images(name, uint8_grid, step)

    def text(self, name: str, text: str) -> None:
        """Adds Markdown to TensorBoard, at the step of this start."""
        self._events.text(name, text, self._start_step)

    def say(self, line: str) -> None:
        """Prints a line on stdout without tearing the bar."""
        with tqdm.tqdm.external_write_mode():
            print(line, flush=True)

    def flush(self) -> None:
        """Writes out what is buffered, so that a start from the next checkpoint has all of it."""
        self._rows.flush()
        self._events.flush()

    def close(self) -> None:
        """Writes out what is buffered; nothing can be logged afterwards."""
        if self._bar is not None:
            self._bar.close()
        self._events.close()
        self._rows.close()
        if self._also is not None:
            self._also.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Silence:
    """Stands in for `Logs` in the processes that log nothing: each method does nothing."""

    folder, goodput = epath.Path(), Goodput([], 0)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes nothing."""

    def advance(self, step: int) -> None:
        """Moves no bar."""

    def images(self, name: str, uint8_grid: np.ndarray, step: int) -> None:
        """Adds no picture."""

    def text(self, name: str, text: str) -> None:
        """Adds no text."""

    def say(self, line: str) -> None:
        """Prints nothing."""

    def flush(self) -> None:
        """Has nothing to write out."""

    def close(self) -> None:
        """Has nothing to close."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def tag(name: str) -> str:
    """The name of a metric in TensorBoard and Weights & Biases, which draw each group together.

    For example "loss/heldout_loss", "loss_by_t/quartile_3", "speed/eta", "train/grad_norm".
    """
    if name.startswith("loss_quartile"):
        return f"loss_by_t/{name.removeprefix('loss_')}"
    return f"{'loss' if name in _LOSSES else 'speed' if name in _SPEEDS else 'train'}/{name}"


def _line(step: int, num_steps: int, metrics: dict[str, float]) -> str:
    parts = [f"step {step:,} of {num_steps:,}"]
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f}")
    if "heldout_loss" in metrics:
        parts.append(f"held-out loss {metrics['heldout_loss']:.4f}")
    if "images_per_second" in metrics:
        parts.append(f"{metrics['images_per_second']:.1f} images/s")
    if "eta" in metrics:
        parts.append(f"eta {format_duration(metrics['eta'])}")
    return "  ".join(parts)
