"""A medium of one's own is a class and a name: here grey squares in files of raw bytes."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from ldm_jax import build, media
from ldm_jax.build.check import check
from ldm_jax.data.latent_cache import latent_cache
from ldm_jax.data.pipeline import batches
from ldm_jax.data.source import Info, describe
from ldm_jax.data.walk import FileKind
from tests.test_habits import config_of


@dataclasses.dataclass(frozen=True)
class Squares:
    """A file of side * side bytes -> [side, side, 1]."""

    side: int
    column: ClassVar[str] = "image"
    crop: ClassVar[str] = "center"
    flip: ClassVar[bool] = False

    @property
    def array_shape(self):
        return self.side, self.side, 1

    @property
    def geometry(self):
        return {"side": self.side}

    def fit(self, row):
        if isinstance(row["image"], np.ndarray):
            return row
        with open(row["image"], "rb") as file:
            return row | {"image": np.frombuffer(file.read(), np.uint8).reshape(self.array_shape)}

    def view(self, row, rng=None):
        return self.fit(row)

    def scaled(self, image):
        return image.astype(np.float32) / 127.5 - 1

    def __call__(self, row, rng=None):
        return {"image": self.scaled(self.view(row)["image"])}


class Grey(media.Medium):
    name = "grey"
    files = FileKind("image", "square", "squares", lambda: frozenset([".grey"]), frozenset([".gray"]), "grey/")
    one, many = "square", "squares"
    channels = 1

    def check(self):
        if self.section["flip"]:
            raise ValueError("config.data.flip=True: squares are not mirrored")

    def transform(self, **columns):
        return Squares(self.section["image_size"])

    def shown(self, arrays):
        return np.repeat(arrays, 3, -1)

    def files_of(self, array):
        return {"grey": np.uint8(np.round((array + 1) * 127.5)).tobytes()}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(media.MEDIA, "grey", Grey)
    monkeypatch.setitem(build.check.__globals__["CHOICES"], ("data", "medium"), tuple(media.MEDIA))
    for i in range(6):
        place = tmp_path / "squares" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.grey").write_bytes(bytes([40 * i] * 64))
    (tmp_path / "squares" / "a" / "other.gray").write_bytes(b"")
    found = config_of()
    found["data"] |= {"medium": "grey", "source": "folder", "path": str(tmp_path / "squares"), "image_size": 8}
    found["first_stage"] |= {"in_channels": 1, "out_ch": 1}
    return found


def test_it_is_read_from_folders_batched_and_cached(config, tmp_path):
    source = build.make_source(config, "train", ("label",))
    assert "class_names=('a', 'b')" in str(source.info) and len(source) == 6
    assert "square files that are not read (.gray)" in describe(source)
    transform = build.make_transform(config)
    batch = next(batches(source, transform, 6, seed=0))
    assert batch["image"].shape == (6, 8, 8, 1)
    np.testing.assert_allclose(np.sort((batch["image"][:, 0, 0, 0] + 1) * 127.5), 40 * np.arange(6), atol=1e-4)
    cache = latent_cache(tmp_path / "cache", source, transform, lambda x: x * 2, {}, batch_size=4, dtype="float32")
    np.testing.assert_allclose(cache[1]["moments"], 2 * transform(source[1])["image"])
    assert cache.info == Info(str(tmp_path / "squares"), ("moments", "label"), ("a", "b"))


def test_what_does_not_fit_is_said(config):
    check(config)
    for change, message in (
        ({"flip": True}, "squares are not mirrored"),
        ({"source": "tfds"}, r"config.data.source \(of medium='grey'\)"),
        ({"image_size": (8, 8, 8)}, "medium='grey' has 2 sides"),
        ({"medium": "gray"}, "config.data.medium.*gray.*grey"),
    ):
        with pytest.raises(ValueError, match=message):
            check(config | {"data": config["data"] | change})
    with pytest.raises(ValueError, match="in_channels=3: medium='grey' gives arrays of 1 channels"):
        check(config | {"first_stage": config["first_stage"] | {"in_channels": 3}})


def test_its_files_lie_beside_the_pictures_and_none_is_overwritten(config, tmp_path):
    medium = build.make_medium(config)
    arrays = np.linspace(-1, 1, 3, dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8, 1), np.float32)
    medium.save(tmp_path / "out", "grid", arrays, list("abc"), singly=True)
    assert (tmp_path / "out" / "0002.grey").read_bytes() == bytes([255] * 64)
    assert np.asarray(Image.open(tmp_path / "out" / "0000.png")).shape == (8, 8, 3)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *(f"000{i}.{kind}" for i in range(3) for kind in ("grey", "png")), "grid.png", "grid.txt",
    ]  # fmt: skip
    (tmp_path / "out" / "0000.png").unlink()
    (tmp_path / "out" / "grid.png").unlink()
    with pytest.raises(FileExistsError):
        medium.save(tmp_path / "out", "grid", arrays, list("abc"), singly=True)


def test_configs_and_descriptions_without_the_field_mean_pictures():
    assert isinstance(media.make_medium({"image_size": 64}), media.Image)
    assert build.make_medium(config_of()).channels == 3
