"""What a run tells: a progress bar or plain lines, TensorBoard, `metrics.jsonl` and PNG grids. Only process 0 speaks."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm


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
    `scalars` prints a line. Use as a context manager.
    """

    def __init__(self, folder: Path, stage: str, steps: int, start: int = 0):
        self.folder, self.stage, self.steps, self.start = Path(folder), stage, steps, start
        self.speaks = jax.process_index() == 0
        self.began = time.monotonic()
        self.bar = self.file = self.board = None
        if self.speaks:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.folder / "metrics.jsonl", "a", buffering=1)
            self.board = SummaryWriter(str(self.folder), flush_secs=10)
            if sys.stderr.isatty():
                self.bar = tqdm(total=steps, initial=start, desc=stage, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_):
        for part in (self.bar, self.file, self.board):
            if part is not None:
                part.close()

    def say(self, text: str):
        """One line for the reader."""
        if self.speaks:
            tqdm.write(text, file=sys.stderr) if self.bar is not None else print(text, flush=True)

    def progress(self, step: int, loss: float, rate: float):
        """Moves the bar (nothing where there is none)."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4g}, {rate:.0f} images/s", refresh=False)
            self.bar.update(step - self.bar.n)

    def scalars(self, step: int, values: Mapping[str, float], show: bool = True):
        """Numbers of one step, under names such as `train/loss`."""
        if not self.speaks:
            return
        values = {name: float(value) for name, value in values.items()}
        seconds = round(time.monotonic() - self.began, 3)
        # Strict JSON has no NaN or infinity; readers get null.
        clean = {name: value if np.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"stage": self.stage, "step": step, "seconds": seconds, **clean}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        if show and self.bar is None:
            left = seconds / max(step - self.start, 1) * (self.steps - step)
            self.say(f"{self.stage} {step}/{self.steps}  {describe(values)}  left {clock(left)}")
        elif show and not any(name.startswith("train/") for name in values):
            self.say(f"{self.stage} {step}/{self.steps}  {describe(values)}")

    def image(self, step: int, name: str, picture: np.ndarray, text: str = "") -> Path | None:
        """A uint8 [H, W, 3] picture -> `folder/images/NAME_STEP.png` and TensorBoard; `text` goes to a .txt beside it."""
        if not self.speaks:
            return None
        from PIL import Image

        path = self.folder / "images" / f"{name}_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        if text:
            path.with_suffix(".txt").write_text(text)
        self.board.add_image(name, picture, step, dataformats="HWC")
        return path


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> 0..255, rounded to nearest."""
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
