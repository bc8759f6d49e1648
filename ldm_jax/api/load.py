"""From a path to a model: working directories of `train.py`, checkpoints of the world, the hub. Reading writes nothing."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, models, weights
from ldm_jax.api import pretrained, trained_on
from ldm_jax.api.autoencoder import Autoencoder
from ldm_jax.api.model import LatentDiffusion
from ldm_jax.api.specification import Specification
from ldm_jax.conditioning import Condition, kind_of
from ldm_jax.diffusion.times import HISTORY
from ldm_jax.first_stage.latents import fold_scale
from ldm_jax.primitives.files import HUB, existing, is_address, is_workdir, of_this_machine, place, read_json
from ldm_jax.training.bucket import fetched, stage_folder
from ldm_jax.training.checkpoint import load_averaged, load_post_hoc

PyTree = Any
_OTHER_VERSION = "restore the file, load it with the version of ldm_jax that wrote it (versions.json says which)"


def load(
    path: str | Path,
    *,
    which: str | int = "last",
    ema: bool = True,
    config: str | Path | None = None,
    dtype: Any = None,
    ema_width: float | None = None,
    prediction: str | None = None,
    tokenizer: str | Path | None = None,
) -> LatentDiffusion | Autoencoder:
    """A model from a working directory of `train.py`, or from a checkpoint of the world: a diffusers pipeline folder, or a
    CompVis .ckpt or .safetensors file with its YAML beside it (or at `config`), or without one (Stable Diffusion 1, 2, 3, XL
    and its refiner, the models of the paper: recognised by their tensors); or "hf:owner/name", a repository of such a folder on
    the Hugging Face hub, or "hf:owner/name/FILE", where the package huggingface_hub is installed. A first stage alone is loaded
    as an `Autoencoder`. Weights are put on the default device.

    Args:
      which: of a working directory's checkpoints: "last", "best" (the lowest validation loss), or a step.
      ema: for a CompVis file that holds both, whether to take the averaged weights.
      dtype: of the parameters, and of the networks' arithmetic; default float32, and what the config says.
      ema_width: of a working directory whose training kept averages for it (config.diffusion_train.post_hoc): the average of
        this relative width, in (0, 0.28], instead of the one of config.diffusion_train.ema_decay (Karras et al. 2024).
      prediction: "eps" or "v", of a single file of Stable Diffusion 2, whose weights don't say it.
      tokenizer: a folder with the files of one (or a tokenizer.json), for a checkpoint that has none beside it; of several text
        encoders one that all share, or a folder of `tokenizer`, `tokenizer_2`, ...

    Raises:
      FileNotFoundError: nothing there, or no stage of it has been trained yet.
      ValueError: a file that can't be read, is not a whole model, or names code to run.
    """
    dtype = None if dtype is None else _floating(dtype)
    half = dtype is not None and dtype.itemsize == 2
    path = fetch(str(path)[len(HUB) :], half) if str(path).startswith(HUB) else local(path)
    if is_workdir(path):
        for name, value in (("prediction", prediction), ("tokenizer", tokenizer)):
            if value is not None:
                raise ValueError(f"{name}={str(value)!r}: {path} is a working directory, which has its own; leave it out")
        return load_workdir(path, which, dtype, ema_width)
    if ema_width is not None:
        raise ValueError(f"ema_width={ema_width}: {path} holds one average; working directories may hold more")
    if which != "last":
        raise ValueError(f"which={which!r}: {path} is one checkpoint, not a working directory with several")
    known = {"config": config, "prediction": prediction, "tokenizer_path": tokenizer}
    specification, params = pretrained.load(path, ema=ema, dtype=dtype, **known)
    return (Autoencoder if specification.condition is None else LatentDiffusion)(specification, params)


def _floating(dtype: Any) -> np.dtype:
    """A `dtype` of `load`. ValueError for what is none, or not one of those that networks compute in."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.dtype(np.float32), np.dtype(jnp.bfloat16)):
        raise ValueError(f"dtype={dtype if found is None else found.name!r}: parameters are 'float32' or 'bfloat16'")
    return found


def load_whole(path: str | Path, **options: Any) -> LatentDiffusion:
    """`load` where a diffusion model is needed. ValueError for a first stage alone."""
    found = load(path, **options)
    if not isinstance(found, LatentDiffusion):
        raise ValueError(f"{path} is a first stage alone, without a diffusion model to draw with")
    return found


def local(path: str | Path) -> Path:
    """The path of a model: `existing`; for the address of a working directory in a bucket, a copy of it (`training.bucket`)."""
    return fetched(path) if isinstance(path, str | Path) and is_address(path) else existing(path)


def fetch(name: str, half: bool = False) -> Path:
    """A local copy of the repository "owner/name" of the Hugging Face hub, one set of weights for each part, in half precision
    where there is one and `half` is asked for; or of one file, "owner/name/FILE", and of what is read beside it. Where the hub
    can't be asked, the copy that it gave before."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w./-]+)?", name):
        raise ValueError(f"{HUB}{name}: write {HUB}owner/name, or {HUB}owner/name/FILE")
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(f"to fetch {name} from the hub: pip install huggingface_hub") from None
    owner, repository, *file = name.split("/", 2)
    repository = f"{owner}/{repository}"
    try:
        there = huggingface_hub.list_repo_files(repository)
    except Exception as error:  # no network, no such repository, no right to it: each version raises its own
        try:
            return Path(huggingface_hub.snapshot_download(repository, local_files_only=True), *file)
        except Exception:
            said = str(error).strip().partition("\n")[0][:200]
            why = f"{type(error).__name__}: {said}"
            raise FileNotFoundError(f"{HUB}{name}: the hub can't be asked ({why}), and there is no copy of it here") from None
    try:
        wanted = weights.beside_of_hub(there, file[0]) if file else weights.wanted_of_hub(there, half)
    except ValueError as error:
        raise ValueError(f"{HUB}{name}: {error}") from None
    return Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted), *file)


def save(ldm: LatentDiffusion | Autoencoder, path: str | Path, format: str = "diffusers") -> None:
    """Writes a model for other programs: a diffusers pipeline folder (of an `Autoencoder` a model folder), or
    (`format="compvis"`) a .ckpt with its YAML beside it. `load` takes both back. The tokenizer is copied; how many steps to
    sample with is not kept. Latents that are standardised by channel become those of the first stage itself, whose outermost
    linear layers take the scales; so does a shift, which all of diffusers' pipelines but Stable Diffusion 3's ignore.

    Raises:
      ValueError: there is something at `path`, or the format can't express the model: docs/from_diffusers.md says which
        pipeline of diffusers draws with which kind of model.
    """
    if ldm.specification.control is not None:
        raise ValueError(
            "a model with a ControlNet can't be written as one: save it without, and the ControlNet by ldm_jax.save_control"
        )
    path, medium = place(path, "save"), ldm.specification.config.get("data", {}).get("medium", "image")
    if medium != "image":
        raise ValueError(f"programs that read format={format!r} draw pictures, this is a model of {medium}: keep its folder")
    spec, params, scale, shift = ldm.specification, ldm.params, ldm.specification.scale, ldm.specification.shift
    if isinstance(ldm, Autoencoder):
        if scale.ndim or shift.ndim:
            params, scale, shift = {"first_stage": fold_scale(params["first_stage"], scale, shift)}, 1.0, 0.0
        return pretrained.save(path, format, spec.config, params, float(scale), float(shift), None)
    kind = build.few_steps_kind(ldm.config)
    if kind and kind.sampler in ("flow_map", "consistency"):
        raise ValueError(
            f"this model predicts {kind.learns} (objective={ldm.config['diffusion']['objective']!r}), and programs that read "
            f"format={format!r} would draw with it as with an ordinary model: keep its working directory"
        )
    kept = ldm.condition.kind == "sd3"  # whose pipeline adds the shift
    own = format == "diffusers" and ((shift.any() and not kept) or (ldm.condition.kind == "superres" and (scale != 1).any()))
    if (scale.ndim or shift.ndim or own) and ldm.config["first_stage"]["kind"] != "none":
        params = params | {"first_stage": fold_scale(params["first_stage"], scale, shift)}
        scale, shift = 1.0, 0.0
    pretrained.save(path, format, ldm.config, params, float(scale), float(shift), spec.condition)


def load_workdir(
    workdir: Path, which: str | int = "last", dtype: Any = None, ema_width: float | None = None
) -> LatentDiffusion | Autoencoder:
    """The averaged weights of a working directory, with the scale, tokenizer and class names saved beside them; an
    `Autoencoder` where config.stages lists no "diffusion"."""
    config = read_json(workdir / "config.json", f"Restore it, or train in another working directory than {workdir}.")
    checkpoints = stage_folder(workdir, "diffusion")
    stages = config.get("stages")
    if isinstance(stages, list) and "diffusion" not in stages and not checkpoints.is_dir():
        if ema_width is not None:
            raise ValueError(f"ema_width={ema_width}: {workdir} trains a first stage alone, which keeps no such averages")
        return load_autoencoder(config, workdir, which, dtype)
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"{workdir}: its diffusion model has not been trained yet; run train.py --workdir {workdir}")
    if dtype is not None:
        config["dtype"] = np.dtype(dtype).name
    condition = _settled(config, workdir)
    stage_dtype = None if dtype is None else build.first_stage_dtype(config)
    # snapshots of the averages are of other steps than checkpoints
    kept = load_averaged(checkpoints, which if ema_width is None else "last")
    if ema_width is not None:
        widths = config["diffusion_train"].get("post_hoc", ())
        kept |= load_post_hoc(stage_folder(workdir, "diffusion", "averages"), widths, ema_width, which)
    if build.adapts(config) in kept:
        params = adapted(config, kept | base_of(config, workdir, dtype), condition)
    else:
        params = {"conditioner": load_conditioner(config, dtype), **kept}
    params.pop(HISTORY, None)  # of training
    if config["data"].get("augment"):  # a model of pictures to which nothing is done
        config["data"]["augment"] = 0.0
        params["network"] = {name: part for name, part in params["network"].items() if name != models.AUGMENT_EMBEDDING}
    params = {"first_stage": load_first_stage(config, workdir, which="last", dtype=stage_dtype), **as_dtype(params, dtype)}
    if dtype is None:  # else they are rounded otherwise than in training
        trained_on.look_at_first_stage(config, workdir, params["first_stage"])
    scale, shift = load_scale(workdir)
    if build.make_word(config):
        config = {**build.without_word(config), "conditioner": condition.section}  # a model that knows the word
    return LatentDiffusion(Specification(config, condition, scale, shift), params)


def load_autoencoder(config: Mapping[str, Any], workdir: Path, which: str | int = "last", dtype: Any = None) -> Autoencoder:
    """The first stage of a working directory; its latents are raw where they haven't been measured."""
    if dtype is not None:
        config = {**config, "dtype": np.dtype(dtype).name}
    stage_dtype = None if dtype is None else build.first_stage_dtype(config)
    params = {"first_stage": load_first_stage(config, workdir, which, stage_dtype)}
    scale, shift = load_scale(workdir) if (workdir / "latents.json").is_file() else (1.0, 0.0)
    config = {**config, "data": build.make_medium(config, workdir).settled()}
    kept = {name: section for name, section in config.items() if name not in ("network", "conditioner", "diffusion")}
    return Autoencoder(Specification(kept, None, scale, shift), params)


def _settled(config: dict[str, Any], workdir: Path) -> Condition:
    """The condition of a working directory's config, whose data and tokenizer are then those of the directory. ValueError, with
    the file's name, where the config lacks what a model is made of or has what none has, as that of another version may."""
    path = workdir / "config.json"
    try:
        config["data"] = build.make_medium(config, workdir).settled()
        if config["conditioner"]["kind"] == "text":
            config["conditioner"]["tokenizer"] = str(workdir.absolute() / "tokenizer.json")
        condition = load_condition(config, workdir)
        made = Specification(config, condition)  # and whether its parts can be made
        _ = made.network, made.first_stage, made.image_size
        with contextlib.suppress(ValueError):  # a sampler that is refused now: others may be named when it is drawn with
            made.recipe()
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}: {_OTHER_VERSION}, or add it with the value of the training") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} has a field of the wrong kind ({error}): {_OTHER_VERSION}") from error
    except ValueError as error:
        if re.match(r"config\.(network|first_stage|conditioner|diffusion|sampling)\b", str(error)):
            raise ValueError(f"{path}: {str(error).rstrip('.')}: {_OTHER_VERSION}") from error
        raise
    return condition


def base_of(config: Mapping[str, Any], workdir: Path, dtype: Any = None) -> PyTree:
    """Network and conditioner of the model that a working directory adapts. ValueError where they have changed since."""
    path = config["diffusion_train"]["start_from"]
    path = path if path.startswith(HUB) else resolve(path, workdir, "config.diffusion_train.start_from")
    params = load(path, dtype=dtype).params
    found = {name: params[name] for name in ("network", "conditioner")}
    trained_on.check_model(config, workdir, found)
    return found


def adapted(config: Mapping[str, Any], params: PyTree, condition: Condition) -> PyTree:
    """Parameters of a frozen model with what a training learnt of it (`build.make_adaptation`) in its place; others as they
    are."""
    adaptation = build.make_adaptation(config, condition)
    if adaptation is None or adaptation.part not in params:
        return params
    changed = adaptation.change(params, params[adaptation.part])
    return {name: part for name, part in params.items() if name != adaptation.part} | changed


def load_scale(workdir: Path) -> tuple[Any, Any]:
    """Scale and shift of the latents, numbers or lists of one a channel."""
    path = workdir / "latents.json"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir}: the scale of its latents is not known; list 'latents' in config.stages")
    way_out = "Delete it: the next training run measures the latents again."
    found = read_json(path, way_out)
    for name in ("scale", "shift"):
        numbers = found[name] if isinstance(found.get(name), list) else [found.get(name)]
        if not numbers or any(isinstance(n, bool) or not isinstance(n, (int, float)) or not np.isfinite(n) for n in numbers):
            raise ValueError(f"{path}: {name} must be a finite number, or a list of one a channel. {way_out}")
    return found["scale"], found["shift"]


def scale_of(path: str | Path) -> tuple[Any, Any]:
    """Scale and shift of the latents of a model, of anything that `load` reads, without its weights."""
    path = fetch(str(path)[len(HUB) :]) if str(path).startswith(HUB) else local(path)
    if is_workdir(path):
        return load_scale(path)
    latents = weights.read(path).description.get("latents", {})
    return latents.get("scale", 1.0), latents.get("shift", 0.0)


def first_stage_of(path: str | Path) -> PyTree:
    """The first stage's parameters of a model, of anything that `load` reads, without the rest; {} where it has none. Those of
    a checkpoint of the world may still be in its files."""
    path = fetch(str(path)[len(HUB) :]) if str(path).startswith(HUB) else local(path)
    if is_workdir(path):
        return load_first_stage(read_json(path / "config.json"), path)
    return weights.read(path).params.get("first_stage", {})


def description_of(path: str | Path) -> dict[str, Any]:
    """What a model, of anything that `load` reads, says of its parts, by the names of a config's sections; no weights."""
    path = fetch(str(path)[len(HUB) :]) if str(path).startswith(HUB) else local(path)
    return read_json(path / "config.json") if is_workdir(path) else weights.read(path).description


def resolve(path: str | Path, workdir: Path, field: str) -> Path:
    """A config's path: as it is, or relative to the working directory or one above it. FileNotFoundError names the field."""
    if is_address(path):
        return fetched(path)
    path = of_this_machine(path, field)
    for base in (Path(), workdir, *workdir.absolute().parents):
        if (base / path).exists():
            return base / path
    beside, file = workdir.absolute().parent / path.name, workdir / "config.json"
    moved = f'; if {beside} is it, write that into {file} and take the entry "sha256" out' if beside.exists() else ""
    raise FileNotFoundError(f"{field}={str(path)!r} does not exist, neither from here nor from {workdir}{moved}")


def load_first_stage(
    config: Mapping[str, Any], workdir: Path, which: str | int = "last", dtype: Any = None, path: Any = None, seen: Any = ()
) -> PyTree:
    """The first stage's parameters: trained in this working directory, or those of config.first_stage.path (or `path`), which
    is another working directory or a checkpoint of the world. One of pictures serves films too (`models.inflated`).
    `seen` are the working directories that led here. Raises ValueError if they don't belong to the autoencoder of `config`."""
    stage = build.make_first_stage(config)
    if stage.module is None:
        return {}
    path = path or config["first_stage"]["path"]
    place = resolve(path, workdir, "config.first_stage.path") if path else workdir
    if (trained := stage_folder(place, "first_stage")).is_dir():
        params = load_averaged(trained, which)
        params = params.get("autoencoder", params)  # the first working directories held it alone
    elif not path:
        raise FileNotFoundError(f"{workdir}: its first stage has not been trained yet; list 'first_stage' in config.stages")
    elif is_workdir(place) and place.resolve() in (seen := {*seen, workdir.resolve()}):
        raise ValueError(f"first_stage.path={str(path)!r} of {workdir} leads back to {place}, which has none of its own")
    elif is_workdir(place):  # one whose own first stage lies elsewhere
        params = load_first_stage(read_json(place / "config.json"), place, seen=seen)
    else:
        params = weights.read(place).params.get("first_stage", {})
    if path and len(stage.factors) == 3:
        params = models.inflated(params, stage.shapes())
    return _checked(params, stage.shapes(), "first stage", place, dtype)


def load_conditioner(config: Mapping[str, Any], dtype: Any = None) -> PyTree:
    """The parameters of a conditioner that is not trained here: CLIP's text encoder, from config.conditioner.path, or that of
    the part that has one, a checkpoint of the world. {} for the others.

    Raises ValueError if they don't belong to the encoder of `config`."""
    condition = build.make_condition(build.without_word(config))
    if not condition.frozen:
        return {}
    expected, section = jax.eval_shape(condition.init, jax.random.key(0)), config["conditioner"]
    if "parts" not in section:
        return _pretrained(section["path"], expected, dtype)
    return {name: _pretrained(section["parts"][name]["path"], tree, dtype) for name, tree in expected.items()}


def _pretrained(path: Any, expected: PyTree, dtype: Any) -> PyTree:
    """The one text encoder of a checkpoint, shaped as `expected`."""
    if not Path(path).exists():
        raise FileNotFoundError(f"config.conditioner.path={path!r} does not exist: name a checkpoint that holds the encoder")
    found = weights.read(path)
    params = found.params.get("conditioner", {})
    if found.description.get("conditioner", {}).get("kind") == "combined":  # the others are of pictures, without parameters
        (params,) = params.values()
    return _checked(params, expected, "conditioner", path, dtype)


def as_dtype(params: PyTree, dtype: Any) -> PyTree:
    """Parameters in another floating-point type; None leaves them."""
    return params if dtype is None else jax.tree.map(lambda x: x.astype(dtype), params)


def _checked(params: PyTree, expected: PyTree, part: str, path: Any, dtype: Any) -> PyTree:
    """The parameters on the default device; ValueError if they are not shaped as `expected`."""
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"the {part} in {path} is not the one that config.{part.replace(' ', '_')} describes")
    return pretrained.on_device(params, np.float32 if dtype is None else dtype)


def load_condition(config: Mapping[str, Any], workdir: Path | None) -> Condition:
    """The condition with the tokenizer and the class names of the working directory."""
    return build.make_condition(config, **kind_of(config["conditioner"]).recall(config["conditioner"], workdir))
