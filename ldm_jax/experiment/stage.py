"""What the stages of an experiment share."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ldm_jax import api, build, models
from ldm_jax.conditioning import Condition, words
from ldm_jax.data.pipeline import batches, eval_batches, in_memory
from ldm_jax.data.source import Spread, describe
from ldm_jax.data.tokenizer import caption_texts
from ldm_jax.experiment import together
from ldm_jax.primitives.arrays import key_of
from ldm_jax.primitives.files import identity
from ldm_jax.training import distributed, lock, sharding
from ldm_jax.training.bucket import stage_folder
from ldm_jax.training.checkpoint import Checkpoints
from ldm_jax.training.judge import Judge
from ldm_jax.training.loop import Hook, Report, train
from ldm_jax.training.metrics import Log, clock
from ldm_jax.training.program import Program
from ldm_jax.training.state import TrainState
from ldm_jax.workdir import check_workdir, open_workdir

PyTree = Any
TRIED = 100  # rows of each split, before anything compiles
BEST = {"first_stage": "validation/psnr", "diffusion": "validation/loss"}  # what judges, unless the config says


class Experiment:
    """The parts that stages share: config, working directory, mesh, data, condition. Of several processes the first writes and
    prepares, and the others read afterwards. Use as a context manager: it holds the working directory."""

    def __init__(self, config: Mapping[str, Any], workdir: Path, script: str = ""):
        self.config, self.workdir, self._script = build.with_lists(config), workdir, script
        together.check_config(self.config)
        self.mesh = sharding.make_mesh(*(config["mesh"].get(axis, 1) for axis in sharding.AXES))
        for stage, having in (("first_stage", {"first_stage"}), ("diffusion", {"latents", "diffusion"})):
            if having & {*config["stages"]}:  # latents are measured over the batches that are to come
                section = config[f"{stage}_train"]
                sharding.check_batch_size(section["batch_size"], self.mesh, section.get("accumulate", 1))
        distributed.on_first("working directory", lambda: check_workdir(self.config, workdir))
        self.medium = build.make_medium(self.config, workdir)
        condition = build.make_condition(self.config) if build.is_told(config) else Condition({}, None)
        # the data set is made by the first process where it is not there yet
        distributed.on_first("data", lambda: build.make_source(self.config, "train", condition.columns))
        self.sources = {split: self._source(split, condition.columns) for split in ("train", "validation")}
        self._held = contextlib.ExitStack()
        distributed.on_first("working directory", lambda: self._held.enter_context(lock.hold(workdir)))
        self._place = identity(workdir)
        try:
            together.check_place(workdir)
            for split, source in self.sources.items():
                together.check_source(source, split)
            distributed.on_first("working directory", lambda: self._write(condition))
            self._look()
            self.condition = condition
            if build.is_told(config):
                self.condition = api.load_condition(self.config, workdir)
                self._say_what_captions_lose()
                self._try_prompts()
                self._try_condition()
        except BaseException:
            self._held.close()
            raise

    def _write(self, condition: Condition) -> None:
        open_workdir(self.config, self.workdir, self._script)
        self.medium.learn(self.sources["train"], self.workdir, self._taught())
        condition.learn(self.sources["train"], self.workdir)

    def _taught(self) -> Path | None:
        """The working directory of the text whose first stage is used, or gone on from where none has begun here."""
        section, train = self.config["first_stage"], self.config["first_stage_train"]
        if section["kind"] != "text":
            return None
        if path := section["path"]:
            return api.resolve(path, self.workdir, "config.first_stage.path")
        begins = "first_stage" in self.config["stages"] and not stage_folder(self.workdir, "first_stage").exists()
        path = train["start_from"] if begins else ""
        return api.resolve(path, self.workdir, "config.first_stage_train.start_from") if path else None

    def _look(self) -> None:
        for source in self.sources.values():
            if said := self.medium.look(source):
                self.say(f"data: {source.info.name}: {said}")

    def _say_what_captions_lose(self) -> None:
        tokenizer = self.condition.setting.tokenizer
        if tokenizer is not None and "caption" in self.condition.columns:
            lost = str(tokenizer.losses(caption_texts(self.sources["train"]), self.condition.length))
            if lost:
                self.say(f"data: {lost}")

    def _try_prompts(self) -> None:
        """Raises ValueError for a prompt of the config that the condition refuses, now and not when all latents are encoded."""
        train = self.config["diffusion_train"]
        try:
            if word := build.make_word(self.config):
                field = "textual_inversion.initial"
                words.initial_tokens(self.condition, word["initial"], word["vectors"])
            if (prior := train.get("dreambooth", {})).get("prior_weight"):
                field = "dreambooth.class_prompt"
                self.condition.parse([prior["class_prompt"]])
        except ValueError as error:
            said = str(error)
            raise ValueError(said if said.startswith("config.") else f"config.diffusion_train.{field}: {said}") from None

    def _try_condition(self) -> None:
        """Raises ValueError for what the condition refuses of some rows (a class that there is not in a label map), now and not
        when the second stage begins."""
        if self.condition.task() is None:
            return
        for source in self.sources.values():
            some = Spread(source, TRIED)
            for _ in eval_batches(some, self.transform(self.condition), 1, on_error=self.config["data"]["on_error"]):
                pass

    def __enter__(self) -> Experiment:
        return self

    def __exit__(self, *_) -> None:
        self._held.close()

    def check_place(self) -> None:
        """FileNotFoundError where the working directory is gone, or another is in its place: nothing is made anew there."""
        if jax.process_index() == 0 and identity(self.workdir) != self._place:
            raise FileNotFoundError(
                f"{self.workdir} is gone, or another is in its place; where it is back, the same command goes on"
            )

    def say(self, text: str) -> None:
        """One line for the reader, of the first process; `Log.say` has where it goes when nobody reads."""
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                print(text, flush=True)

    def _source(self, split: str, columns: tuple[str, ...]) -> Any:
        began = time.monotonic()
        source = build.make_source(self.config, split, columns)
        if self.config["data"]["in_memory"] and self.medium.decoded:
            source = in_memory(source, self.transform().fit, self.config["data"]["on_error"])
        self.say(f"data: {describe(source)} to {split} on ({source.info.name}; {time.monotonic() - began:.0f} s)")
        return source

    def transform(self, condition: Condition | None = None) -> Any:
        """Rows -> arrays; with a condition, also what it reads."""
        return build.make_transform(self.config, condition, self.workdir)

    def example(self) -> str:
        """Flags of sample.py with a condition of the validation set that the model knows all of; what is no text is written
        into WORKDIR/diffusion. "" where there are none, or no such model yet."""
        condition, source, folder = self.condition, Spread(self.sources["validation"], 100), self.workdir / "diffusion"
        if condition.kind == "none" or not folder.is_dir():
            return ""
        for batch in eval_batches(source, self.transform(condition), 1, on_error="skip"):
            # what is refused: a caption with words of its own, or too long for a prompt
            with contextlib.suppress(ValueError):
                return condition.told_as(source[int(batch["row"][0])], source.info, batch, folder)
        return ""

    def _compiling(self, name: str, step: Callable, what: str) -> Callable:
        """The step, which says what it is and that it is compiled when it is called first, and how long that took."""
        done = []

        def call(*arguments: Any) -> Any:
            if done:
                return step(*arguments)
            began = time.monotonic()
            self._log.say(f"{name}: {what}; compiling")
            result = step(*arguments)
            self._log.say(f"{name}: compiled in {clock(time.monotonic() - began)}; {memory_in_words()}")
            done.append(True)
            return result

        return call

    def _said_first(self, name: str, run: Callable[[TrainState], Report]) -> Callable[[TrainState], Report]:
        """A hook that says how long it took the first time, with its compilation, if that was long."""
        done = []

        def call(state: TrainState) -> Report:
            began = time.monotonic()
            report = run(state)
            if not done and (took := time.monotonic() - began) >= 2:
                what = "a validation" if report.scalars else "pictures on the way"
                self._log.say(f"{name}: {what} took {clock(took)}, the first time with compiling")
            done.append(True)
            return report

        return call

    def first_stage_params(self) -> PyTree:
        """The trained first stage, on this process's default device."""
        found = api.load_first_stage(self.config, self.workdir, dtype=build.first_stage_dtype(self.config))
        sharding.check_weights(self.mesh, found, "the first stage, config.first_stage.path")
        return found

    def batches(self, source: Any, transform: Any, batch_size: int, start_step: int) -> Iterator[PyTree]:
        """This process's share of the training batches from `start_step` on."""
        data = self.config["data"]
        return batches(
            source,
            transform,
            batch_size,
            self.config["seed"],
            rows=sharding.local_rows(self.mesh, batch_size),
            start_step=start_step,
            on_error=data["on_error"],
            workers=data["workers"],
        )

    def train(
        self,
        name: str,
        program: Program,
        make_batches: Callable[[int], Iterator[PyTree]],
        make_hooks: Callable[[], list[Hook]],
        constants: PyTree,
        prepare: Callable[[PyTree], PyTree] | None = None,
    ) -> None:
        """Runs or resumes stage `name` to its last step. `make_batches(step)`: global batches from there on; `constants`: what
        `program.constants` describes; `prepare(params)`: what is set before the first step of all."""
        section, log, keep = self.config[f"{name}_train"], self.config["log"], self.config["checkpoint"]
        folder, steps = self.workdir / name, section["steps"]
        distributed.on_first("working directory", self.check_place)
        shapes = program.shapes
        shardings = sharding.state_shardings(self.mesh, shapes)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        judge = Judge(section.get("best", BEST[name]), section.get("patience", 0))
        with Checkpoints(stage_folder(self.workdir, name), keep["keep"]) as checkpoints, contextlib.ExitStack() as opened:

            def is_over(step: int) -> bool:
                judge.recall(checkpoints.folder, step)
                if judge.missed:  # the last look
                    return False
                why = f"{step} steps" if step >= steps else judge.in_words(step) if judge.tired else ""
                if why:
                    self.say(f"{name}: already trained, {why}")
                return bool(why)

            newest = checkpoints.steps[-1:]
            if newest and checkpoints.verify() is None and is_over(newest[0]):
                return
            state = checkpoints.restore(target)
            if state is None:
                state = sharding.init_sharded(self.mesh, program.init_state, self.config["seed"])
                if prepare is not None:
                    # through jit: on CPU, donating what was put there from numpy's memory is not safe
                    begun = prepare(state.params)
                    if section["start_from"]:
                        sharding.check_weights(self.mesh, begun, f"the model to start from, config.{name}_train.start_from")
                    params = sharding.place(begun, shardings.params)
                    state = jax.jit(program.state_of, out_shardings=shardings)(params)
            start = int(state.step)
            if start and is_over(start):
                return
            if start:
                self.say(f"{name}: going on from step {start}")
            step = program.compile(self.mesh, constants)
            hooks = [Hook(hook.every, self._said_first(name, hook.run)) for hook in make_hooks()]
            if program.post_hoc:
                snapshots = opened.enter_context(Checkpoints(stage_folder(self.workdir, name, "averages"), keep=None))
                hooks.append(Hook(keep["snapshots"], functools.partial(take_snapshot, snapshots)))
            counted = "images" if self.medium.name == "image" else self.medium.many
            with Log(folder, name, steps, start, log.get("wandb", ""), self.config, counted) as record:
                self._log = record
                train(
                    state,
                    self._compiling(name, step, in_words(shapes)),
                    make_batches,
                    steps=steps,
                    key=key_of(self.config["seed"]),
                    batch_size=section["batch_size"],
                    log=record,
                    checkpoints=checkpoints,
                    log_every=log["every"],
                    checkpoint_every=keep["every"],
                    hooks=hooks,
                    judge=judge,
                    rewinds=keep.get("rewinds", 3),
                    watchdog_seconds=log.get("watchdog_seconds", 0.0),
                    profile=tuple(log.get("profile", (0, 0))),
                )


def in_words(shapes: TrainState) -> str:
    """How large a state is: parameters by part, and the memory of all of it."""
    parts = {part: models.count(tree) for part, tree in shapes.params.items()} if isinstance(shapes.params, Mapping) else {}
    said = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items() if count)
    kept = jax.tree.leaves((shapes.params, shapes.ema, shapes.opt_state, shapes.post_hoc))
    size = sum(x.size * x.dtype.itemsize for x in kept)
    return f"parameters: {said}; {size / 2**20:.0f} MB with the average and the optimizer's state"


def memory_in_words() -> str:
    """The most memory so far: of the first device where it says so, else of this process."""
    if found := (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
        return f"at most {found / 2**30:.2f} GB of the device's memory so far"
    try:
        import resource
    except ImportError:  # Windows
        return "memory unknown"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"at most {most / 2**30:.2f} GB of memory so far"


def take_snapshot(snapshots: Checkpoints, state: TrainState) -> Report:
    """Keeps the averages of `state.post_hoc` as they are now."""
    snapshots.save(int(state.step), TrainState(state.step, {}, {}, {}, state.skipped, state.post_hoc))
    return Report()
