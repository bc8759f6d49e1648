"""Every field of the default config has an effect, or is refused: another legal value changes the compiled training, or what
the parts of an experiment are told. Nothing is trained."""

import collections
import contextlib
import copy
import dataclasses
import functools
import inspect
import io
import itertools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_jax import api, build, media, scoring
from ldm_jax.api import sampling
from ldm_jax.build import data as build_data
from ldm_jax.build.check import CHOICES, check, check_numbers
from ldm_jax.data import tfds_source
from ldm_jax.data.source import Info
from ldm_jax.experiment import STAGES, diffusion, evaluation, evaluators, first_stage, latents, pictures, stage, starting
from ldm_jax.experiment.evaluators import loss, prompts
from ldm_jax.first_stage import Parts
from ldm_jax.training import metrics, sharding
from ldm_jax.training.judge import Judge
from ldm_jax.training.program import Program
from ldm_jax.training.state import TrainState
from tests.test_habits import config_of, fields_of

TINY = {
    "data.examples": (8, 8),
    "first_stage.ch": 4,
    "first_stage.ch_mult": (1, 1, 1),
    "first_stage.norm_num_groups": 2,
    "first_stage_train.steps": 20,
    "first_stage_train.warmup_steps": 2,
    "network.model_channels": 8,
    "network.channel_mult": (1,),
    "network.attention_resolutions": (1,),
    "network.num_head_channels": 4,
    "network.norm_num_groups": 4,
    "network.context_dim": 16,
    "conditioner.n_embed": 16,
    "diffusion_train.batch_size": 8,
    "diffusion_train.steps": 20,
    "diffusion_train.warmup_steps": 2,
    "latents.scale_batches": 2,
    "evaluation.prompts": 4,
    "log.validation_images": 4,
}
# What names things, and is meant for nothing else.
LABELS = {"name": "train.py trains in runs/NAME"}
VQ = {"first_stage.kind": "vq", "first_stage.double_z": False, "first_stage.n_embed": 16}
EMA = VQ | {"first_stage_loss.codebook": "ema"}
GAN = {"first_stage_loss.disc_weight": 0.5, "first_stage_loss.disc_ndf": 4}
LPIPS = {
    "first_stage_loss.perceptual_weight": 1.0, "first_stage_loss.perceptual_path": "random",
    "first_stage_loss.perceptual_widths": (4, 4, 4, 4, 4),
}  # fmt: skip
LORA = {"diffusion_train.lora.rank": 2, "diffusion_train.start_from": "elsewhere"}
TUNED = {"diffusion_train.start_from": "elsewhere"}
WORD = TUNED | {"diffusion_train.textual_inversion.word": "<ink>", "diffusion_train.textual_inversion.initial": "red"}
CONTROL = TUNED | {"diffusion_train.control.picture": "edges", "latents.cache": False}
PRIOR = TUNED | {"diffusion_train.dreambooth.prior_weight": 1.0, "diffusion_train.dreambooth.class_prompt": "a circle"}
DISTANCE = {"evaluation.evaluators.distance.every": 5}
AVERAGES = {"diffusion_train.post_hoc": (0.05, 0.1), "checkpoint.snapshots": 5}
TFDS = {"data.source": "tfds", "data.path": ".", "conditioner.kind": "text"}
# Fields that belong to a choice which the default does not make: what else is set, in both configs.
WITH = {
    "data.name": TFDS,
    "data.image_column": TFDS,
    "data.caption_column": TFDS,
    "data.label_map_column": TFDS,
    "data.conditioning_column": TFDS,
    "data.boxes_column": TFDS,
    "data.box_labels_column": TFDS,
    "data.label_column": TFDS | {"conditioner": {"kind": "class", "n_classes": 5, "embed_dim": 16, "null_probability": 0.1}},
    "data.flip": {"data.source": "folder", "data.path": "."},
    "first_stage.resolution": {"first_stage.attn_type": "vanilla", "first_stage.attn_resolutions": (16,)},
    "first_stage.attn_resolutions": {"first_stage.attn_type": "vanilla"},
    "first_stage.attn_type": {"first_stage.attn_resolutions": (32,)},
    "first_stage.n_embed": VQ,
    "first_stage.double_z": {},
    "first_stage_loss.perceptual_weight": LPIPS,
    "first_stage_loss.perceptual_path": LPIPS,
    "first_stage_loss.perceptual_linear_path": LPIPS | {"first_stage_loss.perceptual_path": "pyproject.toml"},
    "first_stage_loss.perceptual_widths": LPIPS,
    "first_stage_loss.alignment_weight": LPIPS,
    "first_stage_loss.disc_weight": {"first_stage_loss.disc_ndf": 4},
    **{f"first_stage_loss.disc_{name}": GAN for name in ("adaptive", "factor", "start", "loss", "ndf", "layers", "actnorm")},
    **{f"first_stage_loss.{name}": GAN for name in ("disc_learning_rate", "r1_weight", "lecam_weight", "alternate")},
    "first_stage.unit_codes": VQ,
    "first_stage.fsq_levels": {
        "first_stage.kind": "vq", "first_stage.double_z": False, "first_stage.embed_dim": 2, "first_stage.fsq_levels": (3, 3),
        "network.in_channels": 2, "network.out_channels": 2,
    },
    **{f"first_stage_loss.{name}": VQ for name in ("codebook", "codebook_weight", "codebook_kmeans", "beta", "legacy_beta")},
    **{f"first_stage_loss.codebook_{name}": EMA for name in ("decay", "restart")},
    "latents.scale": {"latents.standardise": False},
    "latents.shift": {"latents.standardise": False},
    "diffusion_train.post_hoc": AVERAGES,
    "checkpoint.snapshots": AVERAGES,
    "data.crop": {"latents.cache": False},
    "data.augment": {"latents.cache": False},
    "network.num_heads": {"network.num_head_channels": -1, "network.num_heads": 1},
    "network.resblock_updown": {"network.channel_mult": (1, 1)},
    "evaluation.features": {"evaluation.num": 8},
    "evaluation.probe_steps": {"evaluation.num": 8, "evaluation.features": "classifier"},
    "mesh.data": {"mesh.fsdp": 2},
    **{f"evaluation.evaluators.distance.{name}": DISTANCE for name in ("num", "features", "steps")},
    **{f"evaluation.evaluators.prompts.{name}": {"evaluation.evaluators.prompts.every": 5} for name in ("num", "objects")},
    "evaluation.evaluators.distance.type": {"evaluation.evaluators.distance": {"every": 5, "type": "distance"}},
    "evaluation.evaluators.prompts.type": {"evaluation.evaluators.prompts": {"every": 5, "type": "prompts"}},
    "diffusion_train.best": {"evaluation.evaluators.prompts.every": 5},
    "diffusion_train.lora.rank": LORA | {"diffusion_train.lora.rank": 0},
    "diffusion_train.lora.alpha": LORA,
    "diffusion_train.lora.targets": LORA,
    "diffusion_train.textual_inversion.word": WORD,
    "diffusion_train.textual_inversion.initial": WORD,
    "diffusion_train.textual_inversion.vectors": WORD,
    "diffusion_train.control.picture": CONTROL,
    "diffusion_train.control.hint_channels": CONTROL,
    "diffusion_train.dreambooth.prior_weight": PRIOR,
    "diffusion_train.dreambooth.class_prompt": PRIOR,
    "diffusion_train.dreambooth.class_pictures": PRIOR,
}  # fmt: skip
# Another legal value, where no rule gives one.
OTHER = {
    "dtype": "bfloat16",
    "compiler": "default",
    "stages": ("first_stage", "latents", "diffusion"),
    "mesh.data": 4,
    "data.source": "folder",
    "data.name": "other",
    "data.path": "tests",
    "data.train_split": "train[:50%]",
    "data.validation_split": "train[50%:]",
    "data.image_size": 64,
    "data.short_side": 40,
    "data.palette": "palette.json",
    "data.examples": (8, 16),
    "data.counts": (0.5, 0.5, 0.0),
    "data.fills": (0.5, 0.5, 0.0),
    "first_stage.kind": "none",
    "first_stage.path": "elsewhere",
    "first_stage.ch_mult": (1, 1, 2),
    "first_stage.attn_resolutions": (16,),
    "first_stage.norm_num_groups": 4,
    "first_stage.dropout": 0.1,
    "first_stage.fsq_levels": (4, 4),
    "first_stage.resolution": 64,
    "first_stage_loss.codebook": "ema",
    "first_stage_loss.codebook_decay": 0.9,
    "first_stage_loss.perceptual_path": "pyproject.toml",
    "first_stage_loss.perceptual_linear_path": "setup.cfg",
    "first_stage_loss.perceptual_widths": (8, 4, 4, 4, 4),
    "first_stage_train.frozen": ("encoder",),
    "network.kind": "dit",
    "network.attention_resolutions": (),
    "network.channel_mult": (2,),
    "network.num_heads": 2,
    "network.num_head_channels": 2,
    "network.norm_num_groups": 2,
    "network.dropout": 0.1,
    "conditioner.kind": "none",
    "conditioner.tokenizer": "wordpiece",
    "conditioner.null_probability": 0.2,
    "evaluation.features": "classifier",
    "evaluation.inception_path": "pyproject.toml",
    "evaluation.num": 8,
    "log.profile": (2, 4),
    "data.spread": 0.5,
    "first_stage_train.best": "validation/ssim",
    "diffusion_train.best": "prompts/bound",
    "evaluation.evaluators.distance.type": "prompts",
    "evaluation.evaluators.prompts.type": "distance",
    "evaluation.evaluators.distance.features": "contrastive",
    "log.wandb": "project",
    "diffusion.objective": "consistency",
    "diffusion_train.lora.targets": ("to_q",),
    "diffusion_train.textual_inversion.word": "<red>",
    "diffusion_train.textual_inversion.initial": "blue",
    "diffusion_train.control.picture": "conditioning",
    "diffusion_train.control.hint_channels": (4, 4, 8),
    "diffusion_train.dreambooth.class_prompt": "a star",
    "data.captions": ("a red star",),
    "conditioner.new_words": ("<ink>",),
}  # fmt: skip


def alternative(name, value):
    """Another legal value of a field: that of OTHER, the next of its names, the other truth, or twice a number."""
    if name in OTHER:
        return OTHER[name]
    section, _, field = name.rpartition(".")
    if (section, field) in CHOICES:
        return next(other for other in CHOICES[section, field] if other != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return (0.5 if 0 <= value < 1 else 2 * value) if isinstance(value, float) else (2 * value or 1)
    if name.endswith("_column"):
        return "other"
    if name.endswith("start_from"):
        return "elsewhere"
    if name.endswith("post_hoc"):
        return (0.05, 0.2)
    raise KeyError(f"{name}={value!r}: what else may it be? Say so in OTHER")


def with_fields(fields):
    """The default, tiny, with these fields set; a whole section is replaced."""
    config = config_of()
    for name, value in fields.items():
        *section, field = name.split(".")
        place = functools.reduce(lambda section, part: section[part], section, config)
        place[field] = copy.deepcopy(value)
    return build.with_lists(config)


def program_text(config, name):
    """What is compiled for a stage: its step, how it starts, and with whose options."""
    program = build.make_program(config, name)
    key = jax.random.key(0)
    yield program.compiler
    yield jax.jit(program.step).lower(program.shapes, program.batch, key, program.constants).as_text()
    yield str(jax.make_jaxpr(program.init_state)(key))


KNOWN = {}  # of configs that many fields are compared with


def known(what, fields, make):
    """`make()`, once for these fields."""
    key = what, repr(sorted(fields.items()))
    if key not in KNOWN:
        KNOWN[key] = make()
    return KNOWN[key]


def frozen(value):
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


# Whose training a section is about; of others, what the parts of an experiment are told is looked at first.
TRAINS = dict.fromkeys(("first_stage", "first_stage_loss", "first_stage_train"), "first_stage")
TRAINS |= dict.fromkeys(("network", "conditioner", "diffusion", "diffusion_train"), "diffusion")


def trains_otherwise(name, base, changed):
    """Whether a stage is trained by another program with the one than with the other."""
    for part in range(3):

        def text(fields, part=part):
            return next(itertools.islice(program_text(with_fields(fields), name), part, None))

        if known((name, part), base, lambda text=text: text(base)) != text(changed):
            return True
    return False


class Said(list):
    """What functions of the package were called with, where they are patched by `tell`."""

    def tell(self, patch, module, name, answer=None, of=lambda value: value):
        """In place of module.name: notes the arguments (`of` them) and gives `answer`, a function of them, or goes on."""
        real = getattr(module, name)
        signature = inspect.signature(real)

        def noted(*arguments, **options):
            bound = signature.bind(*arguments, **options)
            given = {key: value for key, value in bound.arguments.items() if not callable(value)}
            self.append(f"{name} {plain(of(given))}")
            return real(*arguments, **options) if answer is None else answer(*arguments, **options)

        patch.setattr(module, name, noted)


def plain(value):
    """What of an argument shows in a comparison."""
    if isinstance(value, jax.core.Tracer):
        return value.shape
    if isinstance(value, (jax.Array, np.ndarray)):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(value).tolist()
        return value.shape, float(np.asarray(value, np.float64).sum())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Judge):
        value = vars(value)
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [hook.every if hasattr(hook, "every") else plain(hook) for hook in value]
    return value if isinstance(value, (str, int, float, bool, type(None), Path)) else str(type(value))


class Rows:
    """A source of eight pictures with a caption and a class."""

    def __init__(self, columns):
        self.info = Info("rows", tuple(columns), class_names=tuple("abcd"))

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError(i)
        picture = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(picture, "PNG")
        row = {"image": picture.getvalue(), "caption": "a red circle and a blue star", "label": i % 4}
        row["conditioning"] = row["image"]
        return {name: row[name] for name in self.info.columns} | {"name": str(i)}


evaluators_settings = evaluators.settings


class _Enough(Exception):
    """The function that was looked for has been called."""


def told(config, folder):
    """What the parts of the experiment of a config are told, with all that computes left out."""
    said, sized = Said(), Rows(("image", "caption", "label"))

    def rows(*arguments, **_):
        return Rows(("image", *(c for c in ("caption", "label", "conditioning") if c in str(arguments))))

    def state(*_):
        return types.SimpleNamespace(step=0, params=collections.defaultdict(dict))

    def batches(*_, **__):
        size = build.image_size(config)
        count = config["diffusion_train"]["batch_size"]
        return itertools.repeat({"image": np.zeros((count, *size, 3), np.float32)})

    def first_stage_params(config, *_, **__):
        made = build.make_first_stage(config)
        shapes = {}
        if made.module is not None:
            shapes = known("first_stage", config["first_stage"], lambda: jax.eval_shape(made.init, jax.random.key(0)))
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def found(latents):
        channels = build.make_first_stage(config).channels
        return types.SimpleNamespace(count=len(list(latents)), std=[1.0] * channels, mean=[0.0] * channels, scale=1.0)

    def drawn(spec, params, keys, inputs, num, mesh):
        cond = None if inputs is None else {"context": jnp.zeros((num, 1, config["network"]["context_dim"]))}
        options = sampling.Options(negative=cond if config["sampling"]["guidance_scale"] != 1 else None)
        plan, guidance = sampling.prepare(spec, params, cond, num, spec.image_size, options)
        said.append(f"plan {plain(list(jax.tree.leaves(plan.grid)))} {plan.steps} {guidance.scale}")
        return np.zeros((num, *spec.image_size, 3), np.float32)

    def measured(ldm, request, out, **options):
        said.append(f"request {request}")
        with contextlib.suppress(_Enough):
            scoring.features.load(request.features, options["config"], options["folder"])
        return {"results": []}

    def enough(*_, **__):
        raise _Enough

    def settings(config):
        found = evaluators_settings(config)
        said.append(f"evaluators {found}")
        return found

    with pytest.MonkeyPatch.context() as patch:
        tell = functools.partial(said.tell, patch)
        tell(sharding, "make_mesh")
        for module, name in ((build_data, "folder"), (tfds_source, "tfds_source"), (tfds_source, "shapes_source")):
            tell(module, name, rows)
        tell(media.image, "Transform")
        tell(media.image.label_maps, "read_palette", lambda path: None)
        tell(stage, "batches", batches)
        for module in (stage, diffusion):
            tell(module, "in_memory", lambda source, *_: source)
        tell(stage, "Checkpoints")
        tell(metrics, "WandbRun", lambda *_: None, of=lambda told: told["project"])
        tell(stage, "train", lambda *_, **__: None)
        tell(sharding, "init_sharded", state)
        tell(sharding, "compile_step", lambda *_: None)
        patch.setattr(sharding, "place", lambda tree, shardings: tree)
        patch.setattr(Program, "shapes", property(lambda program: TrainState({}, {}, {}, {}, {})))
        made = types.SimpleNamespace(**{**vars(jax), "jit": lambda function, **_: state})
        patch.setattr(stage, "jax", made)
        tell(api, "load_first_stage", first_stage_params, of=lambda told: [told.get("path"), config["first_stage"]["path"]])
        tell(first_stage, "load_perceptual", lambda section: {}, of=lambda told: [
            told["section"]["perceptual_path"], told["section"]["perceptual_linear_path"]])  # fmt: skip
        tell(first_stage, "read_inception", lambda path: None)
        tell(Parts, "prepare", lambda *_: lambda params, images, key, trained: params, of=lambda told: [
            told["weights"], told["terms"]])  # fmt: skip
        tell(latents.latents, "measure", found)
        tell(latents, "learnt", lambda stage, encoded, key, rows: jnp.zeros((len(rows), 1)))
        tell(latents, "write_json", of=lambda told: told["value"])
        for module in (loss, pictures):
            tell(module, "Spread", of=lambda told: {**told, "source": None})
        tell(latents, "latent_cache", lambda *_, **__: sized)
        tell(starting, "pretrained", lambda config, params, *_: params, of=lambda told: [
            told["config"]["diffusion_train"]["start_from"]])  # fmt: skip
        tell(starting, "base", lambda *_: {"network": {}, "conditioner": {}}, of=lambda told: [
            told["config"]["diffusion_train"]["start_from"]])  # fmt: skip
        tell(starting, "word", lambda *_: {}, of=lambda told: build.make_word(told["config"]))
        tell(starting, "control", lambda config, fresh: fresh, of=lambda told: told["config"]["diffusion_train"]["control"])
        tell(api, "scale_of", lambda path: (1.0, 0.0))
        tell(api, "first_stage_of", lambda path: first_stage_params(config))
        tell(diffusion, "prior_source", rows, of=lambda _: config["diffusion_train"]["dreambooth"])
        tell(build.diffusion.diffusion, "make_recipe")
        tell(pictures, "_drawn", drawn, of=lambda told: told["num"])
        ldm = types.SimpleNamespace(params={}, specification=None, config=config)
        tell(api, "load_workdir", lambda workdir, which: ldm)
        patch.setattr(evaluation, "steps_in", lambda folder: [1])
        tell(prompts.shapes, "prompts")
        patch.setattr(evaluators, "settings", settings)
        patch.setattr(api.Specification, "check_params", lambda *_: None)  # they are none
        patch.setattr(evaluation, "save", lambda *_: None)
        patch.setattr(scoring, "evaluate", measured)
        tell(scoring.features.probes, "train", enough)
        if config["data"]["source"] == "tfds":  # the columns of conditions that the default does not have
            build.make_source(config, "train", ("label_map", "conditioning", "boxes", "box_labels"))
        with stage.Experiment(config, folder) as experiment:
            ldm.specification = api.Specification(config, experiment.condition)
            for name in config["stages"]:
                said.append(name)
                STAGES[name](experiment)
        for path in folder.glob("tokenizer.json"):
            said.append(path.read_text())
    return [text.replace(str(folder), "") for text in said]


def effect(name, tmp_path):
    """How another value of a field shows: "training", "told", "refused: ..." or ""."""
    value = functools.reduce(lambda section, part: section[part], name.split("."), config_of())
    base = TINY | WITH.get(name, {})
    value = base.get(name, value)
    changed = base | {name: alternative(name, value)}
    assert frozen(changed[name]) != frozen(value), f"{name}={value}: the alternative is the same"
    own = TRAINS.get(name.partition(".")[0])
    try:
        (check if own else check_numbers)(with_fields(changed))
        if own and trains_otherwise(own, base, changed):
            return "training"
        before = known("told", base, lambda: told(with_fields(base), tmp_path / "base"))
        if before != told(with_fields(changed), tmp_path / "changed"):
            return "told"
        return "training" if any(trains_otherwise(stage, base, changed) for stage in ("first_stage", "diffusion")) else ""
    except ValueError as error:
        known("checked", base, lambda: check(with_fields(base)))  # it is not the base that is wrong
        known("told", base, lambda: told(with_fields(base), tmp_path / "base"))
        return f"refused: {error}"


FIELDS = [name for name, _ in fields_of(config_of()) if name not in LABELS]


def test_every_field_has_another_legal_value():
    for name, value in fields_of(config_of()):
        if name not in LABELS:
            alternative(name, (TINY | WITH.get(name, {})).get(name, value))
    assert {*OTHER, *WITH} <= {*FIELDS}


def test_the_same_config_tells_the_same_and_another_does_not(tmp_path):
    told_by = [told(with_fields(TINY | {"log.every": every}), tmp_path / str(i)) for i, every in enumerate((7, 7, 8))]
    assert told_by[0] == told_by[1] != told_by[2]


def test_what_stands_in_for_an_experiments_parts_fits_them(tmp_path):
    said = told(with_fields(TINY | TUNED | {"evaluation.num": 4}), tmp_path)
    for part in ("pretrained", "first_stage_of", "plan", "request"):
        assert any(text.startswith(part) for text in said), part


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_no_field_is_without_effect(name, tmp_path):
    how = effect(name, tmp_path)
    print(f"{name}: {how}")
    assert how, f"config.{name} changes nothing"
