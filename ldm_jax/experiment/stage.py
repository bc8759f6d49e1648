"""What the stages of an experiment share."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from ldm_jax import api, build
from ldm_jax.conditioning import COLUMNS, Conditioning
from ldm_jax.data.pipeline import batches, in_memory
from ldm_jax.data.tokenizer import caption_texts, load_tokenizer, train_tokenizer
from ldm_jax.training import sharding
from ldm_jax.training.checkpoint import Checkpoints
from ldm_jax.training.loop import Hook, train
from ldm_jax.training.metrics import Log
from ldm_jax.training.state import GradFn, make_init, make_train_step
from ldm_jax.workdir import check_workdir, open_workdir

PyTree = Any


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
        self.conditioning = self._conditioning() if "diffusion" in config["stages"] else None

    def say(self, text: str):
        if jax.process_index() == 0:
            print(text, flush=True)

    def _source(self, split: str):
        columns = COLUMNS.get(self.config["conditioner"]["kind"], ()) if "diffusion" in self.config["stages"] else ()
        began = time.monotonic()
        source = build.make_source(self.config, split, columns)
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
        if section["kind"] == "layout":
            (self.workdir / "classes.json").write_text(json.dumps(info.box_names))
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
        gradients: GradFn | Sequence[GradFn],
        optimizer: optax.GradientTransformation,
        make_batches: Callable[[int], Iterator[PyTree]],
        make_hooks: Callable[[], list[Hook]],
        *,
        constants: PyTree = None,
        prepare: Callable[[PyTree], PyTree] | None = None,
        not_averaged: Sequence[str] = (),
    ) -> None:
        """Runs or resumes stage `name` to its last step. `make_batches(step)`: global batches from there on;
        `prepare(params)`: what is set before the first step of all."""
        section, log, keep = self.config[f"{name}_train"], self.config["log"], self.config["checkpoint"]
        folder, steps = self.workdir / name, section["steps"]
        init = make_init(init_params, optimizer, section["ema_decay"] > 0, not_averaged)
        shapes_ = jax.eval_shape(init, jax.random.key(0))
        shardings = sharding.state_shardings(self.mesh, shapes_)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes_, shardings)
        with Checkpoints(folder / "checkpoints", keep["keep"]) as checkpoints:
            state = checkpoints.restore(target)  # which verifies it: a damaged one is not a trained one
            if state is not None and int(state.step) >= steps:
                self.say(f"{name}: already trained, {steps} steps")
                return
            if state is None:
                state = sharding.init_sharded(self.mesh, init, self.config["seed"])
                if prepare is not None:
                    # through jit: on CPU, donating what was put there from numpy's memory is not safe
                    restart = make_init(lambda params: params, optimizer, section["ema_decay"] > 0, not_averaged)
                    params = jax.device_put(prepare(state.params), shardings.params)
                    state = jax.jit(restart, out_shardings=shardings)(params)
            start = int(state.step)
            if start:
                self.say(f"{name}: going on from step {start}")
            step = make_train_step(gradients, optimizer, section["ema_decay"])
            with Log(folder, name, steps, start) as record:
                train(
                    state,
                    sharding.compile_step(self.mesh, step, shapes_, constants),
                    make_batches,
                    steps=steps,
                    key=jax.random.key(self.config["seed"]),
                    batch_size=section["batch_size"],
                    log=record,
                    checkpoints=checkpoints,
                    log_every=log["every"],
                    checkpoint_every=keep["every"],
                    hooks=make_hooks(),
                )
