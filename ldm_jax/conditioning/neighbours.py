"""Retrieval-augmented diffusion: vectors of neighbours in a data base (Blattmann et al. 2022)."""

import functools
import shlex
from typing import Any

import jax.numpy as jnp
import numpy as np

from ldm_jax import retrieval
from ldm_jax.conditioning.condition import ABILITIES, Condition, alike, in_short
from ldm_jax.conditioning.pictures import written
from ldm_jax.primitives.flags import of_condition


class Neighbours(Condition):
    """float32 [B, k, D] -> context, k being config.conditioner.neighbours in training; another number works too. No neighbour,
    for guidance, is zeros, as often as there are any: attention doesn't count equal ones."""

    kind = "retrieval"
    required = ("neighbours", "database")
    flags = of_condition("prompt", "like", "label")
    companions = of_condition("database", "neighbours")
    abilities = ABILITIES

    @property
    def width(self) -> int:
        """D, the numbers of a vector."""
        return self.setting.network["context_dim"]

    @functools.cached_property
    def null(self) -> np.ndarray:
        return np.zeros((1, self.section.get("neighbours", 1), self.width), np.float32)

    def nulls(self, n, size=None, like=None):
        k = self.null.shape[1] if like is None else like["context"].shape[1]
        return np.zeros((n, k, self.width), np.float32)

    def apply(self, params, inputs):
        return {"context": jnp.asarray(inputs)}

    @property
    def takes(self) -> str:
        return f"vectors of neighbours, float [k, {self.width}] (trained with k = {self.null.shape[1]})"

    def parse(self, values):
        try:
            vectors = [np.asarray(value, np.float32) for value in values]
        except (TypeError, ValueError):
            raise ValueError(f"this model takes {self.takes}, one array a picture") from None
        for value in vectors:
            if not np.isfinite(value).all():
                raise ValueError("neighbours have numbers that are not finite")
            if value.ndim != 2 or value.shape[1] != self.width or not len(value):
                raise ValueError(f"neighbours of shape {list(value.shape)}: this model takes [k, {self.width}], k at least 1")
        return alike(vectors)

    def check_inputs(self, inputs):
        if np.ndim(inputs) != 3 or np.shape(inputs)[-1] != self.width:
            raise ValueError(f"neighbours as an array are float [B, k, {self.width}], these are {in_short(inputs)}")

    def from_batch(self, batch):
        return batch["neighbours"]

    def task(self) -> Any:
        if not self.section["database"]:
            raise ValueError("config.conditioner.database is empty: name what python -m ldm_jax.retrieval build made")
        width = retrieval.load_database(self.section["database"]).vectors.shape[1]
        if width != self.width:
            raise ValueError(f"config.network.context_dim={self.width}: the data base's vectors have {width} numbers")
        return retrieval.NeighboursOf(self.section["database"], self.section["neighbours"], self.setting.data_path)

    def in_words(self, row, info) -> str:
        return row["name"]

    def told_as(self, row, info, batch, folder):
        like = written("like", batch["image"][0], folder / "example.png")
        return f"{like} --database {shlex.quote(self.section['database'])}"

    def check_flags(self, given):
        if not given.get("database"):
            raise ValueError("this model draws from neighbours in a data base: give --database, made by ldm_jax.retrieval")

    def read(self, given):
        self.check_flags(given)
        database = given["database"]
        k = given.get("neighbours") or self.null.shape[1]
        if given.get("like"):
            values = [retrieval.condition(database, k=k, image=retrieval.read_query(database, what)) for what in given["like"]]
            return values, list(given["like"])
        flag, name = ("prompt", "text") if given.get("prompt") else ("label", "label")
        said = list(given[flag])
        return [retrieval.condition(database, k=k, seed=given.get("seed", 0), **{name: what}) for what in said], said
