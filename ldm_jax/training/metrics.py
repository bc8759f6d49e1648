"""What a run tells: a progress bar or plain lines, TensorBoard, `metrics.jsonl` and PNG grids. Only process 0 speaks."""

import contextlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from ldm_jax.primitives import files
from ldm_jax.training.wandb_writer import WandbRun


def describe(values: Mapping[str, float]) -> str:
    """`{"loss": 0.12345, "psnr": 24.51}` -> `loss 0.1235  psnr 24.51`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def clock(seconds: float) -> str:
    """75 -> `1:15`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Log:
    """The record of one stage: appends to `folder/metrics.jsonl`, TensorBoard events beside it, images as PNG.

    `steps` and `start` bound the progress bar, which is drawn where standard error is a terminal; elsewhere every call of
    `scalars` prints a line. What was logged after step `start`, by a run that was killed after its last checkpoint, is dropped.
    A disk that fails doesn't end a run: lines wait until they can be written, pictures and TensorBoard's curves are given up
    with a warning. `wandb`: a project of Weights & Biases that gets all of it too, with `config` as the run's. `many`: what
    the bar counts. Use as a context manager.
    """

    def __init__(
        self,
        folder: str | Path,
        stage: str,
        steps: int,
        start: int = 0,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
        many: str = "images",
    ):
        self.many = many
        self.folder, self.stage, self.steps, self.start = Path(folder), stage, steps, start
        self.speaks = jax.process_index() == 0
        self.began = time.monotonic()
        self.seconds_per_step: float | None = None  # of late; the loop knows
        self.bar = self.board = self.wandb = None
        self._waiting: list[str] = []
        if self.speaks:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.rewind(start)
            self.wandb = WandbRun(wandb, self.folder, stage, config or {}) if wandb else None
            if sys.stderr.isatty():
                self.bar = tqdm(total=steps, initial=start, desc=stage, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_):
        self._append()
        for part in (self.bar, self.board, self.wandb):
            if part is not None:
                with contextlib.suppress(OSError):
                    part.close()

    def rewind(self, step: int):
        """Drops what was logged after `step`."""
        if not self.speaks:
            return
        self._append()
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            lines = path.read_bytes().decode("utf-8", "replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            if kept != lines or not path.read_bytes().endswith(b"\n"):
                files.write_text(path, "".join(f"{line}\n" for line in kept))
        if self.board is not None:
            self.board.close()
        self.board = _Board(self.folder, step)
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def say(self, text: str):
        """One line for the reader, if there still is one: a training outlives its terminal, and a `tee` that is gone."""
        if self.speaks:
            with contextlib.suppress(OSError):
                tqdm.write(text, file=sys.stderr) if self.bar is not None else print(text, flush=True)

    def progress(self, step: int, loss: float, rate: float):
        """Moves the bar (nothing where there is none)."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4g}, {rate:.0f} {self.many}/s, left {clock(self.left(step))}", refresh=False)
            self.bar.update(step - self.bar.n)

    def left(self, step: int) -> float:
        """Seconds to the last step, from the median of late steps; from the mean of all before the loop has one."""
        mean = (time.monotonic() - self.began) / max(step - self.start, 1)
        return (self.seconds_per_step or mean) * (self.steps - step)

    def scalars(self, step: int, values: Mapping[str, float], show: bool = True):
        """Numbers of one step, under names such as `train/loss`."""
        if not self.speaks:
            return
        values = {name: float(value) for name, value in values.items()}
        seconds = round(time.monotonic() - self.began, 3)
        # Strict JSON has no NaN or infinity; readers get null.
        clean = {name: value if np.isfinite(value) else None for name, value in values.items()}
        line = {"stage": self.stage, "step": step, "seconds": seconds, **clean}
        self._waiting.append(json.dumps(line, ensure_ascii=False) + "\n")
        self._append()
        self._show_board(step, [summary.scalar(name, value) for name, value in values.items()])
        self._show_wandb(step, values)
        if show and self.bar is None:
            self.say(f"{self.stage} {step}/{self.steps}  {describe(values)}  left {clock(self.left(step))}")
        elif show and not any(name.startswith("train/") for name in values):
            self.say(f"{self.stage} {step}/{self.steps}  {describe(values)}")

    def image(self, step: int, name: str, picture: np.ndarray, text: str = "") -> Path | None:
        """A uint8 [H, W, 3] picture -> `folder/images/NAME_STEP.png` and TensorBoard; `text` goes to a .txt beside it."""
        if not self.speaks:
            return None
        from PIL import Image

        path = self.folder / "images" / f"{name}_{step:07d}.png"
        try:
            path.parent.mkdir(exist_ok=True)  # but not `folder`: where that is gone, pictures are given up
            Image.fromarray(picture).save(path)
            if text:
                files.write_text(path.with_suffix(".txt"), text)
        except OSError as error:
            warnings.warn(f"{path} could not be written: {error}", stacklevel=2)
        self._show_board(step, [summary.image(name, picture, dataformats="HWC")])
        self._show_wandb(step, {name: picture})
        return path

    def _append(self):
        """Writes the lines that wait; one that was written in part is ended, and left out by readers as it is no JSON."""
        if not self._waiting:
            return
        try:
            with open(self.folder / "metrics.jsonl", "ab", buffering=0) as file:
                before = file.tell()
                data = "".join(self._waiting).encode("utf-8")
                if file.write(data) != len(data):
                    os.ftruncate(file.fileno(), before)
                    raise OSError("the disk is full")
            self._waiting = []
        except OSError as error:
            if len(self._waiting) == 1:
                warnings.warn(f"{self.folder / 'metrics.jsonl'} can't be written ({error}); its lines wait", stacklevel=3)

    def _show_board(self, step: int, values: list):
        if self.board is not None and not self.board.add(step, values):
            self.board = None


    def _show_wandb(self, step: int, values: Mapping[str, Any]):
        if self.wandb is not None and not self.wandb.add(step, values):
            self.wandb = None


class _Board:
    """TensorBoard's events, written by the thread that has them: tensorboardX's own writer hangs when its thread dies."""

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        suffix = f".{os.getpid()}.{time.monotonic_ns()}"  # two within a second would be one file
        self._writer = EventsWriter(str(folder / self._prefix(folder)), suffix)
        if step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            # what an earlier file has from this step on is hidden
            self._write(event_pb2.Event(step=step + 1, session_log=start, wall_time=time.time()))

    @staticmethod
    def _prefix(folder: Path) -> str:
        """How the name of a file begins that comes after all that are there, in the order of names, in which TensorBoard reads
        them: the time follows, by a clock that may have been set back."""
        found = (re.match(r"events\.out\.tfevents\.(\d{10})\b", path.name) for path in folder.glob("events.out.tfevents.*"))
        newest = max((int(match[1]) for match in found if match), default=0)
        return f"events.out.tfevents.{newest + 1}" if newest >= int(time.time()) else "events"

    def _write(self, *events: event_pb2.Event):
        for event in events:
            self._writer.write_event(event)
        self._writer.flush()

    def add(self, step: int, values: list) -> bool:
        """Whether they could be written."""
        try:
            self._write(*(event_pb2.Event(step=step, summary=value, wall_time=time.time()) for value in values))
        except OSError as error:
            warnings.warn(f"TensorBoard's events in {self.folder} can't be written ({error}); given up", stacklevel=4)
            with contextlib.suppress(OSError):
                self._writer.close()
            return False
        return True

    def close(self):
        """Ends the file."""
        self._writer.close()


def _step_of(line: str) -> float:
    """The step of a line of metrics; infinity for a broken one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return np.inf


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> 0..255, rounded to nearest. ValueError for whole numbers, which are no such pictures: of 8 bits, all but 0
    would be white."""
    if np.asarray(images).dtype.kind in "iub":
        raise ValueError(f"pictures of {np.asarray(images).dtype}: expected floating-point numbers in [-1, 1]")
    return np.clip(np.round((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def image_grid(images: np.ndarray, columns: int = 0, border: int = 2) -> np.ndarray:
    """[N, H, W, 3] in [-1, 1] -> one uint8 picture, row by row, as square as it gets unless `columns` says otherwise."""
    images = to_uint8(images)
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    grid = np.full((rows * (height + border) + border, columns * (width + border) + border, channels), 255, np.uint8)
    for i, picture in enumerate(images):
        top, left = border + i // columns * (height + border), border + i % columns * (width + border)
        grid[top : top + height, left : left + width] = picture
    return grid
