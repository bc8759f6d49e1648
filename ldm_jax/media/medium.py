"""What a medium has to say of itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.walk import FileKind


class Medium:
    """The functions of one medium. A new one is a subclass in a file of its own, named in `MEDIA`.

    A datum is an array [*space, channels], float32 in [-1, 1], of the shape that `transform().array_shape` says; examples and
    batches call it "image" whatever it is. It must have as many channels as config.first_stage.in_channels.

    Class attributes:
      name: in config.data.medium.
      files: what a folder source looks for; None where there is no such source. Its column is what rows have (add it to
        `data.source.DATA`).
      sources: the names that config.data.source may have.
      axes: how many sides config.data.image_size has; unit: what it counts.
      decoded: whether a row's datum has to be decoded, which config.data.in_memory does once.
      abilities: methods of `LatentDiffusion` that make sense with it; None: all.
      one, many: what a datum is called in words.
    """

    name = ""
    files: FileKind | None = None
    sources: tuple[str, ...] = ("folder",)
    axes = 2
    unit = "pixels"
    decoded = True
    abilities: tuple[str, ...] | None = None
    one, many = "", ""

    def __init__(self, section: Mapping[str, Any], workdir: Path | None = None):
        """`section`: config.data, or as much of it as sampling needs. `workdir`: where `learn` wrote."""
        self.section, self.workdir = section, workdir

    # From rows to arrays

    @property
    def channels(self) -> int:
        """Of the array."""
        raise NotImplementedError

    def check(self) -> None:
        """ValueError where config.data can't be meant; before any data are read."""

    def transform(self, **columns: Any) -> Any:
        """A transform of rows (see `data.transform`); `columns`: what it makes of all but the datum (`tokenize`, `task`,
        `whole_boxes`). It must pickle, for worker processes."""
        raise NotImplementedError

    def learn(self, source: Any, folder: Path, first: Path | None = None) -> None:
        """Writes into the working directory what is learnt of the training set before any model, such as a vocabulary. `first`:
        the working directory whose first stage is used, or gone on from, and what it learnt so with it."""

    def look(self, source: Any) -> str:
        """What is to be said of a split's rows before anything is trained on them, after `learn`; "" for nothing. ValueError
        that names one which can't be taken."""
        return ""

    def settled(self) -> dict[str, Any]:
        """config.data with what `learn` wrote named by its path: for models that are loaded, whose working directory isn't."""
        return dict(self.section)

    # What people give and get

    def read(self, path: str | Path) -> np.ndarray:
        """A user's file as a datum of any size. ValueError or FileNotFoundError that names the file and what is wrong."""
        raise NotImplementedError

    def check_size(self, size: Sequence[int]) -> None:
        """ValueError for the sides of a datum that can't be drawn, whatever the model could."""

    def laid(self, mask: np.ndarray) -> np.ndarray:
        """A mask [H, W] that a user drew for a datum as `shown`, as it lies on the array."""
        return mask

    def words(self, arrays: np.ndarray) -> list[str] | None:
        """What data say, for those that are text: a line each."""
        return None

    def shown(self, arrays: np.ndarray) -> np.ndarray:
        """[N, *space, channels] -> pictures [N, H, W, 3], float32 in [-1, 1]: for grids in training and beside files."""
        raise NotImplementedError

    def files_of(self, array: np.ndarray) -> dict[str, bytes]:
        """What is written of one datum beside its picture: {suffix without dot: the file}."""
        return {}

    def save(
        self,
        folder: Path,
        name: str,
        arrays: np.ndarray,
        words: list[str],
        columns: int = 0,
        singly: bool = False,
        texts: Sequence[Mapping[str, str]] = (),
        *,
        suffix: str = "png",
        labels: bool = False,
    ) -> Path:
        """One grid of pictures with its words; `singly`: every datum as files of its own besides, NUMBER.SUFFIX. Arguments and
        errors as of `save_pictures`, to which the pictures go; `files_of` is written beside them."""
        from ldm_jax.pictures import save_pictures  # here, because TensorBoard comes with it

        if singly:
            self.write(folder, arrays)
        return save_pictures(folder, name, self.shown(arrays), words, columns, singly, texts, suffix=suffix, labels=labels)

    def write(self, folder: Path, arrays: np.ndarray) -> None:
        """`files_of` every datum as folder/NUMBER.SUFFIX. FileExistsError rather than overwrite one."""
        for i, array in enumerate(arrays):
            for suffix, data in self.files_of(array).items():
                folder.mkdir(parents=True, exist_ok=True)
                with open(folder / f"{i:04d}.{suffix}", "xb") as file:
                    file.write(data)
