"""How probes learn: losses, changes of the pictures that leave the answer alone, and one training run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import evaluation, models
from ldm_jax.data.pipeline import batches, in_memory
from ldm_jax.data.source import Source
from ldm_jax.data.tokenizer import Tokenizer, caption_texts, train_tokenizer
from ldm_jax.data.transform import Transform
from ldm_jax.primitives.arrays import key_of
from ldm_jax.probes.probe import KINDS, Probe, write
from ldm_jax.training import sharding
from ldm_jax.training.checkpoint import Checkpoints
from ldm_jax.training.loop import Interrupted
from ldm_jax.training.loop import train as run_loop
from ldm_jax.training.metrics import Log
from ldm_jax.training.optimizer import make_optimizer
from ldm_jax.training.state import Step, from_loss, make_init, make_train_step

PyTree = Any
CAPTION_LENGTH = 26


def train(
    kind: str,
    source: Source,
    size: int,
    out: str | Path,
    *,
    flip: bool = False,
    transform: Any = None,
    steps: int = 800,
    batch_size: int = 32,
    learning_rate: float = 4e-3,
    seed: int = 0,
    on_error: str = "raise",
    **options: Any,
) -> Probe:
    """Trains a probe on a source, writes it to the folder `out`, and returns it. `transform`: of rows that are no
    pictures (see `data.transform`), in place of random crops of `size`. `on_error`: "raise", or "skip", which leaves out what
    can't be read. `options` are fields of its network.

    Raises:
      ValueError: an unknown kind, a source without the column that it needs, a folder that holds another probe.
      KeyboardInterrupt: Ctrl-C or SIGTERM while it trained; its state is saved, and the same call goes on.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose {', '.join(KINDS)}")
    needs = {"classifier": "label", "segmenter": "label_map"}.get(kind)
    if needs and needs not in source.info.columns:
        raise ValueError(f"a {kind} learns from {needs}, but {source.info.name} has {', '.join(source.info.columns)}")
    out = Path(out)
    transform = Transform(size, "random", flip) if transform is None else transform
    source = in_memory(source, transform.fit, on_error)
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
    *sides, channels = transform.array_shape
    probe = Probe(kind, tuple(sides), options, {}, source.info.class_names, tokenizer)
    write(probe, out)

    network = probe.network
    optimizer = make_optimizer("muon", learning_rate, steps, min(50, steps), "cosine", b2=0.99, clip_norm=1.0)
    images = jax.ShapeDtypeStruct((1, *sides, channels), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, CAPTION_LENGTH), jnp.int32)
    inputs = (images,) if kind != "contrastive" else (images, tokens if tokenizer else images)
    init = make_init(lambda key: models.initialize(network, key, *inputs), optimizer, ema=True)
    step = make_train_step(from_loss(make_loss(kind, network)), optimizer, 0.99)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    shapes = jax.eval_shape(init, jax.random.key(0))
    with Checkpoints(out / "checkpoints", keep=1) as checkpoints, Log(out, kind, steps) as log:
        state = checkpoints.restore(
            jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding.state_shardings(mesh, shapes)
            )
        )
        state = sharding.init_sharded(mesh, init, seed) if state is None else state
        try:
            state = run_loop(
                state,
                sharding.compile_step(mesh, step, shapes),
                batches(source, transform, batch_size, seed, start_step=int(state.step)),
                steps=steps,
                key=key_of(seed),
                batch_size=batch_size,
                log=log,
                checkpoints=checkpoints,
                log_every=max(steps // 10, 1),
                checkpoint_every=steps,
            )
        except Interrupted as stopped:  # the loop takes Ctrl-C and SIGTERM over; whoever asked for a probe is stopped with it
            raise KeyboardInterrupt(str(stopped)) from None
    return dataclasses.replace(probe, params=state.averaged)


def make_loss(kind: str, network: Any) -> Callable:
    """`loss_fn(params, batch, key) -> (loss, {"accuracy"})` for batches of a source's columns."""

    def classify(params: PyTree, batch: PyTree, key: jax.Array, step: Step) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = network.apply({"params": params}, varied(batch["image"], key))
        target = 0.9 * jax.nn.one_hot(batch["label"], network.n_classes) + 0.1 / network.n_classes
        return cross_entropy(logits, target).mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    def segment(params: PyTree, batch: PyTree, key: jax.Array, step: Step) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = network.apply({"params": params}, recoloured(batch["image"], key))
        truth, known = batch["label_map"], (batch["label_map"] >= 0) & (batch["label_map"] < network.n_classes)
        loss = cross_entropy(logits, jax.nn.one_hot(truth, network.n_classes))
        count = jnp.maximum(known.sum(), 1)
        return (known * loss).sum() / count, {"accuracy": (known & (logits.argmax(-1) == truth)).sum() / count}

    def contrast(params: PyTree, batch: PyTree, key: jax.Array, step: Step) -> tuple[jax.Array, dict[str, jax.Array]]:
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
    """Of logits [..., K] with target probabilities [..., K]: [...]."""
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


def measure(probe: Probe, source: Source, transform: Any = None, on_error: str = "raise") -> dict[str, float]:
    """What the probe gets right on a source: accuracy; mean IoU and pixel accuracy; or how often, of the source's pictures
    (at most 256), a picture's own caption is nearest to it (`recall_at_1`; equal captions count as its own). `transform`: of
    rows that are no pictures; `on_error` as for `train`. Classes are those of their names, however the source numbers them;
    ValueError for one that a classifier didn't learn."""
    transform = Transform(probe.size) if transform is None else transform
    seen = in_memory(source, lambda row: {"caption": row.get("caption"), **transform(row)}, on_error)
    examples = [seen[i] for i in range(len(seen))]
    images = np.stack([example["image"] for example in examples])
    if probe.kind == "classifier":
        labels = _as_learnt(np.array([example["label"] for example in examples]), source, probe)
        return {"accuracy": float((probe(images).argmax(-1) == labels).mean())}
    if probe.kind == "segmenter":
        truth = np.stack([example["label_map"] for example in examples])
        confusion = evaluation.confusion_matrix(truth, probe(images), probe.options["n_classes"])
        return {"mean_iou": evaluation.mean_iou(confusion), "pixel_accuracy": evaluation.pixel_accuracy(confusion)}
    if probe.tokenizer is None:
        return {}
    captions = [c if isinstance(c, str) else c[0] for c in (example["caption"] for example in examples[:256])]
    nearest = (probe(images[:256]) @ probe.words(captions).T).argmax(-1)
    return {"recall_at_1": float(np.mean([captions[i] == own for i, own in zip(nearest, captions)]))}


def _as_learnt(labels: np.ndarray, source: Source, probe: Probe) -> np.ndarray:
    """Labels [N] of a source as a classifier numbers its classes; where one of both has no names, as they are."""
    names, known = source.info.class_names, probe.class_names
    if names is None or known is None:
        return labels
    if strange := [names[label] for label in sorted(set(labels.tolist())) if names[label] not in known]:
        raise ValueError(f"{source.info.name}: the classifier didn't learn {strange[0]!r}; it knows {', '.join(known[:8])}")
    return np.array([known.index(names[label]) for label in labels])


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
