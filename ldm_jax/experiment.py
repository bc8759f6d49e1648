"""An experiment: the stages a config lists, run in a working directory, each resumable.

    first_stage   images -> autoencoder
    latents       the scale of its latents, and (if asked) the posterior moments of the training set, encoded once
    diffusion     latents, conditions -> network and conditioner, jointly
    evaluation    pictures from the averaged weights, and what can be measured of them

    WORKDIR/config.json, versions.json      what ran
    WORKDIR/first_stage, WORKDIR/diffusion  checkpoints/, metrics.jsonl, TensorBoard events, images/
    WORKDIR/latents.json, WORKDIR/latents/  scale and statistics; the cache
    WORKDIR/evaluation/0000                 pictures with their prompts, and results.json
"""

import functools
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build, latents
from ldm_jax.conditioning import Conditioning
from ldm_jax.data import shapes
from ldm_jax.data.latent_cache import hash_arrays, latent_cache
from ldm_jax.data.pipeline import batches, eval_batches, in_memory
from ldm_jax.data.source import Spread
from ldm_jax.data.tokenizer import caption_texts, load_tokenizer, train_tokenizer
from ldm_jax.data.transform import LatentTransform
from ldm_jax.first_stage import psnr
from ldm_jax.training import sharding
from ldm_jax.training.checkpoint import Checkpoints
from ldm_jax.training.loop import Hook, Report, train
from ldm_jax.training.metrics import Log, clock, image_grid
from ldm_jax.training.state import TrainState, make_init, make_train_step
from ldm_jax.workdir import check_workdir, free_folder, open_workdir, save_pictures, summary

PyTree = Any


def run(config: Mapping[str, Any], workdir: Path) -> None:
    """Runs the stages of `config`; those already finished in `workdir` are passed over.

    Raises:
      ValueError: a config that can't work, a working directory of another config, data that don't fit; before any compile.
      training.loop.Interrupted: asked to stop; the same call goes on from there.
    """
    began = time.monotonic()
    logging.getLogger("absl").setLevel(logging.ERROR)  # where TFDS and Orbax report their routine
    build.check(config)
    experiment = Experiment(config, Path(workdir))
    for name in config["stages"]:
        STAGES[name](experiment)
    experiment.say(f"\nFinished in {clock(time.monotonic() - began)}. {summary(experiment.workdir)}")


class Experiment:
    """The parts that stages share: config, working directory, mesh, data, conditioning."""

    def __init__(self, config: Mapping[str, Any], workdir: Path):
        self.config, self.workdir = build.with_lists(config), workdir
        self.mesh = sharding.make_mesh(config["mesh"]["data"], config["mesh"]["fsdp"])
        for stage in ("first_stage", "diffusion"):
            if stage in config["stages"]:
                sharding.check_batch_size(config[f"{stage}_train"]["batch_size"], self.mesh)
        check_workdir(self.config, workdir)
        self.sources = {split: self._source(split) for split in ("train", "validation")}
        if jax.process_index() == 0:
            open_workdir(self.config, workdir)
        self.conditioning = self._conditioning()

    def say(self, text: str):
        if jax.process_index() == 0:
            print(text, flush=True)

    def _source(self, split: str):
        columns = {"class": ("label",), "label": ("label",), "text": ("caption",)}.get(self.config["conditioner"]["kind"], ())
        began = time.monotonic()
        source = build.make_source(self.config, split, columns if "diffusion" in self.config["stages"] else ())
        if self.config["data"]["in_memory"]:
            transform = build.make_transform(self.config)
            source = in_memory(source, transform.fit, self.config["data"]["on_error"])
        skipped = f", {source.skipped} skipped" if getattr(source, "skipped", 0) else ""
        self.say(f"data: {len(source)} images to {split} on ({source.info.name}{skipped}; {time.monotonic() - began:.0f} s)")
        return source

    def _conditioning(self) -> Conditioning:
        """Trains the tokenizer, or notes the class names, on first use."""
        section, info = self.config["conditioner"], self.sources["train"].info
        if section["kind"] == "text" and not (self.workdir / "tokenizer.json").is_file():
            kind = section["tokenizer"]
            if Path(kind).suffix == ".json":
                tokenizer = load_tokenizer(kind)
            else:
                tokenizer = train_tokenizer(caption_texts(self.sources["train"]), kind, section["vocab_size"])
            tokenizer.save(self.workdir / "tokenizer.json")
        if section["kind"] in ("class", "label"):
            room = section["n_classes"] - (section["kind"] == "class")  # a class embedder's last row is the empty class
            if info.class_names is not None and len(info.class_names) > room:
                raise ValueError(
                    f"config.conditioner.n_classes={section['n_classes']}: the data have {len(info.class_names)} classes, "
                    f"and there is room for {room}"
                )
            (self.workdir / "classes.json").write_text(json.dumps(info.class_names))
        return api.load_conditioning(self.config, self.workdir)

    def first_stage_params(self) -> PyTree:
        """The trained first stage, a copy on every device."""
        params = api.load_first_stage(self.config, self.workdir)
        return sharding.replicate(self.mesh, params)

    def batches(self, source, transform, batch_size: int, start_step: int) -> Iterator[PyTree]:
        data = self.config["data"]
        return batches(
            source,
            transform,
            batch_size,
            self.config["seed"],
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            start_step=start_step,
            on_error=data["on_error"],
            workers=data["workers"],
        )

    def train(
        self,
        name: str,
        init_params: Callable[[jax.Array], PyTree],
        loss_fn: Callable,
        make_batches: Callable[[int], Iterator[PyTree]],
        make_hooks: Callable[[], list[Hook]],
    ) -> None:
        """Runs or resumes stage `name` to its last step. `make_batches(step)`: global batches from there on."""
        section, log, keep = self.config[f"{name}_train"], self.config["log"], self.config["checkpoint"]
        folder, steps = self.workdir / name, section["steps"]
        optimizer = build.make_stage_optimizer(section)
        init = make_init(init_params, optimizer, ema=section["ema_decay"] > 0)
        shapes_ = jax.eval_shape(init, jax.random.key(0))
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes_,
            sharding.state_shardings(self.mesh, shapes_),
        )
        with Checkpoints(folder / "checkpoints", keep["keep"]) as checkpoints:
            if checkpoints.steps and checkpoints.steps[-1] >= steps:
                self.say(f"{name}: already trained, {steps} steps")
                return
            state = checkpoints.restore(target)
            if state is None:
                state = sharding.init_sharded(self.mesh, init, self.config["seed"])
            start = int(state.step)
            if start:
                self.say(f"{name}: going on from step {start}")
            step = make_train_step(jax.value_and_grad(loss_fn, has_aux=True), optimizer, section["ema_decay"])
            with Log(folder, name, steps, start) as record:
                train(
                    state,
                    sharding.compile_step(self.mesh, step, shapes_),
                    make_batches(start),
                    steps=steps,
                    key=jax.random.key(self.config["seed"]),
                    batch_size=section["batch_size"],
                    log=record,
                    checkpoints=checkpoints,
                    log_every=log["every"],
                    checkpoint_every=keep["every"],
                    hooks=make_hooks(),
                )


def first_stage(experiment: Experiment) -> None:
    """Trains the autoencoder, unless the config names a trained one or has none."""
    config = experiment.config
    stage = build.make_first_stage(config)
    if stage.module is None or config["first_stage"]["path"]:
        experiment.say(f"first_stage: {config['first_stage']['path'] or 'none, diffusion in pixels'}")
        return
    batch_size = config["first_stage_train"]["batch_size"]

    def make_batches(start: int) -> Iterator[PyTree]:
        transform = build.make_transform(config)
        for batch in experiment.batches(experiment.sources["train"], transform, batch_size, start):
            yield sharding.to_device(experiment.mesh, {"image": batch["image"]})

    @jax.jit
    def reconstruct(params, images):
        encoded = stage.encode(params, images)
        z = latents.mode(encoded["moments"]) if "moments" in encoded else encoded["latents"]
        reconstruction = jnp.clip(stage.decode(params, z), -1, 1)
        return reconstruction, psnr(images, reconstruction)

    def validate(state: TrainState) -> Report:
        values, pairs = [], []
        for images, mask in _validation_images(experiment, batch_size):
            reconstruction, value = jax.device_get(reconstruct(state.averaged, images))
            values.append(value[mask])
            pairs.append(np.stack([images, reconstruction], axis=1)[mask])
        mean = float(np.mean(np.concatenate(values)))
        pairs = np.concatenate(pairs)[:32]
        grid = image_grid(pairs.reshape(-1, *pairs.shape[2:]), columns=8)
        return Report({"validation/psnr": mean}, {"reconstructions": (grid, "pairs: original, reconstruction")}, score=-mean)

    experiment.train(
        "first_stage",
        stage.init,
        build.make_first_stage_loss(config),
        make_batches,
        lambda: [Hook(config["log"]["validation_every"], validate)],
    )


def _validation_images(experiment: Experiment, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """config.log.validation_images of the validation set: images [B, H, W, 3] and which of them count."""
    source = Spread(experiment.sources["validation"], experiment.config["log"]["validation_images"])
    for batch in eval_batches(source, build.make_transform(experiment.config), batch_size):
        yield batch["image"], batch["mask"]


def measure_latents(experiment: Experiment) -> None:
    """Estimates scale and statistics over many batches; encodes the training set if config.latents.cache."""
    config, section = experiment.config, experiment.config["latents"]
    path = experiment.workdir / "latents.json"
    stage, params = build.make_first_stage(config), experiment.first_stage_params()
    if not path.is_file():
        key = jax.random.key(config["seed"])
        batch_size = config["diffusion_train"]["batch_size"]

        @jax.jit
        def encode(params, images, key):
            encoded = stage.encode(params, images)
            return latents.sample_posterior(encoded["moments"], key) if "moments" in encoded else encoded["latents"]

        def draws():
            source, transform = experiment.sources["train"], build.make_transform(config)
            numbered = enumerate(batches(source, transform, batch_size, config["seed"]))
            for i, batch in itertools.islice(numbered, section["scale_batches"]):
                yield jax.device_get(encode(params, batch["image"], jax.random.fold_in(key, i)))

        found = latents.measure(draws())
        scale = section["scale"] or found.scale
        path.write_text(
            json.dumps({"scale": scale, "shift": section["shift"], "count": found.count, "mean": found.mean, "std": found.std})
        )
        experiment.say(f"latents: scale {scale:.5f} from {found.count} images" + (" (config)" if section["scale"] else ""))
    if section["cache"] and stage.module is not None:
        cache = _open_cache(experiment, stage, params)
        experiment.say(f"latents: {len(cache)} in {experiment.workdir / 'latents'}")


def _open_cache(experiment: Experiment, stage: build.FirstStage, params: PyTree):
    if jax.process_count() > 1:
        raise ValueError("config.latents.cache=True is for one process; make the cache with one, or set it to False")
    encode = jax.jit(lambda params, images: next(iter(stage.encode(params, images).values())))
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    began = time.monotonic()

    def report(done: int, total: int):
        if done == total:
            experiment.say(f"latents: {total} images encoded in {time.monotonic() - began:.0f} s")

    return latent_cache(
        experiment.workdir / "latents",
        experiment.sources["train"],
        build.make_transform(experiment.config),
        functools.partial(encode, params),
        {"first_stage": hash_arrays(named)},
        report=report,
    )


def diffusion(experiment: Experiment) -> None:
    """Trains the diffusion model on latents, from the cache or encoded on the way."""
    config, conditioning = experiment.config, experiment.conditioning
    section, stage = config["diffusion_train"], build.make_first_stage(config)
    batch_size = section["batch_size"]
    if not (experiment.workdir / "latents.json").is_file():
        raise ValueError("config.stages: 'diffusion' needs 'latents' before it, which finds the latents' scale")
    scale = json.loads((experiment.workdir / "latents.json").read_text())
    first_stage_params = experiment.first_stage_params()
    cached = config["latents"]["cache"] and stage.module is not None
    loss_fn = build.make_diffusion_loss(config, conditioning, scale["scale"], scale["shift"])
    encode = jax.jit(stage.encode)

    def latent_batch(batch: Mapping[str, np.ndarray]) -> PyTree:
        on_device = sharding.to_device(experiment.mesh, dict(batch))
        encoded = {} if "image" not in batch else encode(first_stage_params, on_device["image"])
        kept = {name: on_device[name] for name in ("moments", "latents") if name in batch}
        return {**encoded, **kept, "inputs": conditioning.from_batch(on_device)}

    def make_batches(start: int) -> Iterator[PyTree]:
        if cached:
            source = _open_cache(experiment, stage, first_stage_params)
            if config["data"]["in_memory"]:
                source = in_memory(source, lambda row: row)
            transform = LatentTransform(config["data"]["flip"], conditioning.tokenize)
        else:
            source, transform = experiment.sources["train"], build.make_transform(config, conditioning.tokenize)
        return map(latent_batch, experiment.batches(source, transform, batch_size, start))

    def make_hooks() -> list[Hook]:
        validation_loss = jax.jit(lambda params, batch, key: loss_fn(params, batch, key)[1]["loss_simple"])
        transform = build.make_transform(config, conditioning.tokenize)
        held_out = Spread(experiment.sources["validation"], config["log"]["validation_images"])
        inputs, words = example_inputs(experiment, 16)
        # one object for the whole run: its compiled functions belong to it
        ldm = api.LatentDiffusion(config, {}, conditioning, scale["scale"], scale["shift"])

        def validate(state: TrainState) -> Report:
            losses = []
            for i, batch in enumerate(eval_batches(held_out, transform, batch_size)):
                batch.pop("mask")  # the last batch is filled up with its last row
                # the same noise and times at every validation: only the weights differ
                losses.append(float(validation_loss(state.averaged, latent_batch(batch), jax.random.key(i))))
            return Report({"validation/loss": float(np.mean(losses))}, score=float(np.mean(losses)))

        def show(state: TrainState) -> Report:
            params = {"first_stage": first_stage_params, "conditioner": {}, **state.averaged}
            images = draw(ldm, params, inputs, len(words), config["evaluation"]["batch_size"])
            return Report(images={"samples": (image_grid(images), "\n".join(words))})

        return [Hook(config["log"]["validation_every"], validate), Hook(config["log"]["images_every"], show)]

    experiment.train(
        "diffusion",
        build.make_diffusion_init(config, conditioning),
        loss_fn,
        make_batches,
        make_hooks,
    )


def example_inputs(experiment: Experiment, count: int) -> tuple[np.ndarray | None, list[str]]:
    """Conditions of rows spread over the validation set, as inputs of the conditioner and in words."""
    source, conditioning = Spread(experiment.sources["validation"], count), experiment.conditioning
    rows = [source[i] for i in range(len(source))]
    if conditioning.kind == "none":
        return None, [""] * len(rows)
    if conditioning.kind == "text":
        words = [row["caption"] if isinstance(row["caption"], str) else row["caption"][0] for row in rows]
        # not parsed as prompts: captions of the data may be too long, and hold words that no training caption had
        return np.stack([conditioning.tokenize(caption) for caption in words]), words
    labels = [row["label"] for row in rows]
    names = source.info.class_names
    return np.asarray(labels, np.int32), [names[label] if names else str(label) for label in labels]


def draw(ldm: api.LatentDiffusion, params: PyTree, inputs: np.ndarray | None, count: int, batch_size: int) -> np.ndarray:
    """`count` pictures, always `batch_size` at once, so that there is one compilation."""
    images = []
    for start in range(0, count, batch_size):
        cond = None
        if inputs is not None:
            rows = np.minimum(np.arange(start, start + batch_size), count - 1)
            cond = ldm.embed(params, inputs[rows])
        drawn = ldm.sample(params, jax.random.fold_in(jax.random.key(0), start), cond, num=batch_size)
        images.append(np.asarray(drawn)[: count - start])
    return np.concatenate(images)


def evaluate(experiment: Experiment) -> None:
    """Pictures from the averaged weights for held-out conditions; for `shapes`, how many of them are what was asked for."""
    if jax.process_index():
        return
    config, folder = experiment.config, free_folder(experiment.workdir / "evaluation")
    ldm = api.load_workdir(experiment.workdir)
    inputs, words = example_inputs(experiment, 64)
    images = draw(ldm, ldm.params, inputs, len(words), config["evaluation"]["batch_size"])
    save_pictures(folder, "validation", images, words)
    experiment.say(f"evaluation: {len(images)} pictures for validation conditions in {folder}")
    results = {}
    if config["data"]["source"] == "shapes" and config["conditioner"]["kind"] == "text":
        for objects in (1, 2):
            results |= check_shapes(experiment, ldm, objects, folder)
    (folder / "results.json").write_text(json.dumps(results, indent=2))


def check_shapes(experiment: Experiment, ldm: api.LatentDiffusion, objects: int, folder: Path) -> dict[str, float]:
    """Draws held-out prompts of so many objects, and reads the pictures back."""
    count, batch_size = (experiment.config["evaluation"][name] for name in ("prompts", "batch_size"))
    asked = shapes.prompts(count, objects, experiment.config["seed"], build.make_mix(experiment.config))
    # not parsed as a user's prompts: a small training set may lack a word of theirs, and is then judged without it
    inputs = np.stack([ldm.conditioning.tokenize(text) for text, _ in asked])
    images = draw(ldm, ldm.params, inputs, count, batch_size)
    found = {name: float(np.mean(right)) for name, right in shapes.check_all(images, [scene for _, scene in asked]).items()}
    save_pictures(folder, f"{objects}_objects", images[:64], [text for text, _ in asked[:64]])
    said = f"shape {found['shape']:.1%}, colour {found['colour']:.1%}, both {found['bound']:.1%}"
    if objects == 2:
        said += f", also the relation {found['all']:.1%}"
    experiment.say(f"evaluation: {count} held-out prompts with {objects} object{'s' * (objects > 1)}: {said} right")
    return {f"{objects}_objects/{name}": value for name, value in found.items()}


STAGES = {"first_stage": first_stage, "latents": measure_latents, "diffusion": diffusion, "evaluation": evaluate}
