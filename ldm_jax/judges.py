"""Judges: small networks trained on real pictures, which say whether drawn ones obey their conditions.

    python -m ldm_jax.judges train --kind classifier --data FLOWERS --size 64 --flip --out JUDGE
    python -m ldm_jax.judges train --kind contrastive --data runs/shapes --out JUDGE

    judge = judges.load("JUDGE")
    judge(images)                    classifier: probabilities [N, K]; segmenter: label maps [N, H, W];
                                     contrastive: unit vectors [N, D]
    judge.words(["a red circle"])    contrastive with captions: unit vectors [N, D]

A classifier needs the column `label`, a segmenter `label_map`. A contrastive judge learns captions if there are any, and
otherwise to tell each picture from the others through crops and changes of colour (Chen et al. 2020, "SimCLR").
"""

import argparse
import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, evaluation, models
from ldm_jax.data.pipeline import batches, in_memory
from ldm_jax.data.source import Source
from ldm_jax.data.tokenizer import Tokenizer, caption_texts, load_tokenizer, train_tokenizer
from ldm_jax.data.transform import Transform
from ldm_jax.training import sharding
from ldm_jax.training.checkpoint import Checkpoints, load_averaged
from ldm_jax.training.loop import train as run_loop
from ldm_jax.training.metrics import Log
from ldm_jax.training.optimizer import make_optimizer
from ldm_jax.training.state import from_loss, make_init, make_train_step

PyTree = Any
KINDS = {"classifier": models.Classifier, "segmenter": models.Segmenter, "contrastive": models.DualEncoder}
AT_ONCE = 64  # pictures judged in one call of the network
CAPTION_LENGTH = 26


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A trained network with what it needs to be used. `size`: (height, width) it was trained at, to which pictures of other
    sizes are brought; `options`: the network's fields; `measured`: what it got right on pictures it was not trained on."""

    kind: str
    size: tuple[int, int]
    options: Mapping[str, Any]
    params: PyTree
    class_names: tuple[str, ...] | None = None
    tokenizer: Tokenizer | None = None
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Pictures [N, H, W, 3] in [-1, 1] -> what this kind says of them."""
        return in_parts(functools.partial(self._look, self.params), np.asarray(images, np.float32))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Pictures -> what a classifier reads its logits from, [N, D], for distances between sets of pictures."""
        if self.kind != "classifier":
            raise ValueError(f"features are a classifier's; this judge is a {self.kind}")
        return in_parts(functools.partial(self._read_off, self.params), np.asarray(images, np.float32))

    def words(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> unit vectors [N, D]. ValueError for a judge that learnt no captions."""
        if self.tokenizer is None:
            raise ValueError(f"this judge ({self.kind}) knows no words: train a contrastive one on pictures with captions")
        tokens = self.tokenizer.encode(texts, self.options["max_seq_len"])
        return in_parts(functools.partial(self._read, self.params), tokens)

    @functools.cached_property
    def _network(self) -> Any:
        return KINDS[self.kind](**self.options)

    @functools.partial(jax.jit, static_argnums=0)
    def _look(self, params: PyTree, images: jax.Array) -> jax.Array:
        if self.kind == "contrastive":
            return self._network.apply({"params": params}, self._sized(images), method="image")
        logits = self._network.apply({"params": params}, self._sized(images))
        return jax.nn.softmax(logits) if self.kind == "classifier" else logits.argmax(-1)

    @functools.partial(jax.jit, static_argnums=0)
    def _read_off(self, params: PyTree, images: jax.Array) -> jax.Array:
        return self._network.apply({"params": params}, self._sized(images), method="features")

    def _sized(self, images: jax.Array) -> jax.Array:
        return images if images.shape[1:3] == self.size else jax.image.resize(images, (len(images), *self.size, 3), "bilinear")

    @functools.partial(jax.jit, static_argnums=0)
    def _read(self, params: PyTree, tokens: jax.Array) -> jax.Array:
        return self._network.apply({"params": params}, tokens, method="text")


def in_parts(look: Callable[[np.ndarray], jax.Array], rows: np.ndarray) -> np.ndarray:
    """`look` at a fixed number of rows at a time, so that it is compiled once."""
    found = []
    for start in range(0, len(rows), AT_ONCE):
        numbers = np.minimum(np.arange(start, start + AT_ONCE), len(rows) - 1)
        found.append(np.asarray(look(rows[numbers]))[: len(rows) - start])
    return np.concatenate(found)


def data_of(path: str | Path) -> dict[str, Any]:
    """A config of the data at `path`, as far as `build.make_source` reads it: those of a working directory, or a folder of
    images, whose pictures have no size of their own (image_size 0)."""
    path = Path(path)
    if (path / "config.json").is_file():
        return json.loads((path / "config.json").read_text())
    splits = {"train_split": "train", "validation_split": "validation"}
    return {"data": {"source": "folder", "path": str(path), "image_size": 0, **splits}}


def train(
    kind: str,
    source: Source,
    size: int,
    out: str | Path,
    *,
    flip: bool = False,
    steps: int = 800,
    batch_size: int = 32,
    learning_rate: float = 4e-3,
    seed: int = 0,
    **options: Any,
) -> Judge:
    """Trains a judge on a source, writes it to the folder `out`, and returns it. `options` are fields of its network.

    Raises:
      ValueError: an unknown kind, a source without the column that it needs, a folder that holds another judge.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose {', '.join(KINDS)}")
    needs = {"classifier": "label", "segmenter": "label_map"}.get(kind)
    if needs and needs not in source.info.columns:
        raise ValueError(f"a {kind} learns from {needs}, but {source.info.name} has {', '.join(source.info.columns)}")
    out = Path(out)
    transform = Transform(size, "random", flip)
    source = in_memory(source, transform.fit)
    tokenizer = None
    if kind == "classifier":
        options = {"n_classes": _classes(source), **options}
    elif kind == "segmenter":
        options = {"n_classes": 1 + max(int(source[i]["label_map"].max()) for i in range(len(source))), **options}
    elif "caption" in source.info.columns:
        tokenizer = train_tokenizer(caption_texts(source), "wordpiece", 4096)
        said = {"vocab_size": tokenizer.vocab_size, "max_seq_len": CAPTION_LENGTH, "pad": tokenizer.pad}
        options = {**said, **options}
        transform = dataclasses.replace(transform, tokenize=_Tokenize(tokenizer, CAPTION_LENGTH))
    judge = Judge(kind, (size, size), options, {}, source.info.class_names, tokenizer)
    _write(judge, out)

    network = judge._network
    optimizer = make_optimizer("muon", learning_rate, steps, min(50, steps), "cosine", b2=0.99, clip_norm=1.0)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, CAPTION_LENGTH), jnp.int32)
    inputs = (images,) if kind != "contrastive" else (images, tokens if tokenizer else images)
    init = make_init(lambda key: models.initialize(network, key, *inputs), optimizer, ema=True)
    step = make_train_step(from_loss(make_loss(kind, network)), optimizer, 0.99)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    shapes = jax.eval_shape(init, jax.random.key(0))
    with Checkpoints(out / "checkpoints", keep=1) as checkpoints:
        state = checkpoints.restore(
            jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding.state_shardings(mesh, shapes)
            )
        )
        state = sharding.init_sharded(mesh, init, seed) if state is None else state
        with Log(out, kind, steps, int(state.step)) as log:
            state = run_loop(
                state,
                sharding.compile_step(mesh, step, shapes),
                batches(source, transform, batch_size, seed, start_step=int(state.step)),
                steps=steps,
                key=jax.random.key(seed),
                batch_size=batch_size,
                log=log,
                checkpoints=checkpoints,
                log_every=max(steps // 10, 1),
                checkpoint_every=steps,
            )
    return dataclasses.replace(judge, params=state.averaged)


def make_loss(kind: str, network: Any) -> Callable:
    """`loss_fn(params, batch, key) -> (loss, {"accuracy"})` for batches of a source's columns."""

    def classify(params: PyTree, batch: PyTree, key: jax.Array, step: Any = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = network.apply({"params": params}, varied(batch["image"], key))
        target = 0.9 * jax.nn.one_hot(batch["label"], network.n_classes) + 0.1 / network.n_classes
        return cross_entropy(logits, target).mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    def segment(params: PyTree, batch: PyTree, key: jax.Array, step: Any = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = network.apply({"params": params}, recoloured(batch["image"], key))
        truth, known = batch["label_map"], (batch["label_map"] >= 0) & (batch["label_map"] < network.n_classes)
        loss = cross_entropy(logits, jax.nn.one_hot(truth, network.n_classes))
        count = jnp.maximum(known.sum(), 1)
        return (known * loss).sum() / count, {"accuracy": (known & (logits.argmax(-1) == truth)).sum() / count}

    def contrast(params: PyTree, batch: PyTree, key: jax.Array, step: Any = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        first, second = jax.random.split(key)
        images = batch["image"]
        if network.vocab_size:
            views, other = varied(images, first), batch["tokens"]
            same = (other[:, None] == other[None]).all(-1)  # equal captions are no mistake
        else:
            views, other = (recoloured(varied(images, k, zoom=0.5), k, 0.4) for k in (first, second))
            same = jnp.eye(len(images), dtype=bool)
        a, b, scale = network.apply({"params": params}, views, other)
        products, target = scale * a @ b.T, same / same.sum(-1, keepdims=True)
        loss = (cross_entropy(products, target) + cross_entropy(products.T, target)).mean() / 2
        right = jnp.take_along_axis(same, products.argmax(-1)[:, None], -1)
        return loss, {"accuracy": right.mean()}

    return {"classifier": classify, "segmenter": segment, "contrastive": contrast}[kind]


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    return -(target * jax.nn.log_softmax(logits)).sum(-1)


def varied(images: jax.Array, key: jax.Array, zoom: float = 0.15) -> jax.Array:
    """Each picture of [B, H, W, 3] magnified by up to 1 / (1 - zoom) about a random place, which keeps it filled."""
    side, x, y = jax.random.uniform(key, (3, len(images)))
    side = 1 - zoom * side
    size = jnp.float32(images.shape[1:3])

    def one(image: jax.Array, side: jax.Array, place: jax.Array) -> jax.Array:
        translation = -place * (1 - side) * size / side
        scale = jnp.full(2, 1 / side)
        return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, translation, "linear", antialias=False)

    return jax.vmap(one)(images, side, jnp.stack([x, y], -1))


def recoloured(images: jax.Array, key: jax.Array, strength: float = 0.15) -> jax.Array:
    """Brightness, contrast and saturation of each picture changed by up to `strength`."""
    brightness, contrast, saturation = jax.random.uniform(key, (3, len(images), 1, 1, 1), minval=-strength, maxval=strength)
    grey = images.mean(-1, keepdims=True)
    images = grey + (1 + saturation) * (images - grey)
    mean = images.mean((1, 2, 3), keepdims=True)
    return jnp.clip(mean + (1 + contrast) * (images - mean) + brightness, -1, 1)


def measure(judge: Judge, source: Source) -> dict[str, float]:
    """What the judge gets right on a source: accuracy; mean IoU and pixel accuracy; or how often, of the source's pictures
    (at most 256), a picture's own caption is nearest to it (`recall_at_1`; equal captions count as its own)."""
    transform = Transform(judge.size)
    examples = [transform(source[i]) | {"caption": source[i].get("caption")} for i in range(len(source))]
    images = np.stack([example["image"] for example in examples])
    if judge.kind == "classifier":
        labels = np.array([example["label"] for example in examples])
        return {"accuracy": float((judge(images).argmax(-1) == labels).mean())}
    if judge.kind == "segmenter":
        truth = np.stack([example["label_map"] for example in examples])
        confusion = evaluation.confusion_matrix(truth, judge(images), judge.options["n_classes"])
        return {"mean_iou": evaluation.mean_iou(confusion), "pixel_accuracy": evaluation.pixel_accuracy(confusion)}
    if judge.tokenizer is None:
        return {}
    captions = [c if isinstance(c, str) else c[0] for c in (example["caption"] for example in examples[:256])]
    nearest = (judge(images[:256]) @ judge.words(captions).T).argmax(-1)
    return {"recall_at_1": float(np.mean([captions[i] == own for i, own in zip(nearest, captions)]))}


def load(path: str | Path) -> Judge:
    """A judge from the folder that `train` wrote. FileNotFoundError or ValueError if there is none."""
    path = Path(path)
    if not (path / "judge.json").is_file():
        raise FileNotFoundError(f"{path} holds no judge: train one with python -m ldm_jax.judges train --out {path}")
    said = json.loads((path / "judge.json").read_text())
    names = tuple(said["class_names"]) if said["class_names"] else None
    tokenizer = load_tokenizer(path / "tokenizer.json") if (path / "tokenizer.json").is_file() else None
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in said["options"].items()}
    params = load_averaged(path / "checkpoints")
    return Judge(said["kind"], tuple(said["size"]), options, params, names, tokenizer, said["measured"])


def _write(judge: Judge, out: Path) -> None:
    """Everything but the weights. ValueError if there is another judge."""
    said = {name: getattr(judge, name) for name in ("kind", "size", "options", "class_names")}
    text = json.dumps(said | {"measured": dict(judge.measured)}, indent=2)
    if (out / "judge.json").is_file():
        there = json.loads((out / "judge.json").read_text())
        if {**there, "measured": {}} != {**json.loads(text), "measured": {}}:
            raise ValueError(f"{out} holds another judge; choose another folder, or remove it first")
    out.mkdir(parents=True, exist_ok=True)
    (out / "judge.json").write_text(text)
    if judge.tokenizer is not None:
        judge.tokenizer.save(out / "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class _Tokenize:
    """A caption to a row of tokens; pickles."""

    tokenizer: Tokenizer
    length: int

    def __call__(self, text: str) -> np.ndarray:
        return self.tokenizer.encode_one(text, self.length)


def _classes(source: Source) -> int:
    names = source.info.class_names
    return len(names) if names else 1 + max(int(source[i]["label"]) for i in range(len(source)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ldm_jax.judges", description=__doc__.split("\n")[0])
    command = parser.add_subparsers(dest="command", required=True).add_parser("train")
    command.add_argument("--kind", choices=KINDS, required=True)
    command.add_argument("--data", required=True, help="a folder of images, or a working directory, whose data are meant")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--size", type=int, help="the side to look at pictures with; by default the working directory's")
    command.add_argument("--columns", nargs="*", help="of the data; by default what the kind needs")
    command.add_argument("--flip", action="store_true", help="mirror half of the pictures, where left and right don't matter")
    command.add_argument("--classes", type=int, help="of a segmenter: label maps' values from here on don't count")
    command.add_argument("--steps", type=int, default=800)
    command.add_argument("--batch-size", type=int, default=32)
    command.add_argument("--learning-rate", type=float, default=4e-3)
    command.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # where TFDS and Orbax report their routine
    default = {"classifier": ["label"], "segmenter": ["label_map"], "contrastive": ["caption"]}[chosen.kind]
    columns = default if chosen.columns is None else chosen.columns
    try:
        config = data_of(chosen.data)
        size = chosen.size or config["data"]["image_size"]
        if not size:
            raise ValueError(f"{chosen.data} is a folder of images: say at which --size to look at them")
        sources = [build.make_source(config, split, columns) for split in ("train", "validation")]
        judge = train(
            chosen.kind,
            sources[0],
            size,
            chosen.out,
            **{name: getattr(chosen, name) for name in ("flip", "steps", "batch_size", "learning_rate", "seed")},
            **({"n_classes": chosen.classes} if chosen.classes else {}),
        )
        judge = dataclasses.replace(judge, measured=measure(judge, sources[1]))
        _write(judge, chosen.out)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.out}: " + ", ".join(f"{name} {value:.3f}" for name, value in judge.measured.items()) + " on validation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
