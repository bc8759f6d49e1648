"""What looks at pictures for distances: a network, its file and how pictures are brought to it, by one text.

    inception:FILE       InceptionV3 of the Frechet inception distance, from pytorch-fid's file; measures have its names
    clip:FOLDER          CLIP's image tower, from a folder of transformers
    dinov2:FILE          DINOv2, from Meta's file or a folder of transformers (Stein et al. 2023 recommend it)
    classifier[:PROBE]   a small classifier, trained on the real training pictures; PROBE: one that is there already
    contrastive[:PROBE]  the same without labels: it learns to tell every picture from the others
    auto                 inception where config.evaluation.inception_path names it, else classifier where the data have labels,
                         else contrastive

Numbers of different networks, files or ways to resize can't be compared, so `about` says all three, and names of measures begin
with the network's: only Inception's are called FID.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, models, probes, weights
from ldm_jax.build.check import FEATURES
from ldm_jax.data import fingerprint
from ldm_jax.models.inception import RESIZE
from ldm_jax.primitives.arrays import unit
from ldm_jax.primitives.choices import check_choice
from ldm_jax.primitives.files import read_json, write_json
from ldm_jax.retrieval import load_clip
from ldm_jax.training import distributed, sharding
from ldm_jax.training.checkpoint import checksums

PyTree = Any
NAMES = {
    "frechet": "frechet_distance", "infinity": "frechet_distance_infinity", "spatial": "spatial_frechet_distance",
    "kernel": "kernel_distance", "score": "score",
}  # fmt: skip
INCEPTION = {"frechet": "fid", "infinity": "fid_infinity", "spatial": "sfid", "kernel": "kid", "score": "inception_score"}
FETCH = {
    "inception": "fetch https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth (95 MB) and name it, inception:FILE",
    "clip": "fetch the repository openai/clip-vit-large-patch14 of the Hugging Face hub into a folder (config.json and "
    "model.safetensors) and name it, clip:FOLDER",
    "dinov2": "fetch https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth (1.2 GB) and name it, "
    "dinov2:FILE",
}
PROBES = ("classifier", "contrastive")
PROBE_STEPS = 400
LEARNT_FROM = "learnt_from.json"  # beside a probe: which pictures it saw


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """`run(params, images)`: float32 [B, H, W, 3] in [-1, 1] -> "features" [B, D], and "logits" and "spatial" if the network
    has them; pure. `about`: what must be equal for numbers to be comparable. `least`: the shortest side that it takes. `words`:
    texts to unit vectors [N, D] in the features' space, where the network reads too. `class_names`: of a classifier."""

    kind: str
    about: Mapping[str, Any]
    params: PyTree
    run: Callable[[PyTree, jax.Array], dict[str, jax.Array]]
    least: int = 1
    words: Callable[[Sequence[str]], np.ndarray] | None = None
    class_names: tuple[str, ...] | None = None

    def name(self, measure: str) -> str:
        """The full name of a measure: "frechet" -> "inception/fid", "classifier/frechet_distance"."""
        return name_of(self.kind, measure)

    def on(self, mesh: Any) -> Callable[[jax.Array], dict[str, np.ndarray]]:
        """Pictures over the devices of `mesh`, uint8 or float in [-1, 1], rounded to 8 bits -> the outputs of all of them, in
        every process."""
        params = sharding.replicate(mesh, self.params)

        def look(params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
            if images.dtype != jnp.uint8:
                images = jnp.round((jnp.clip(images.astype(jnp.float32), -1, 1) + 1) * 127.5)
            return self.run(params, images.astype(jnp.float32) / 127.5 - 1)

        compiled = jax.jit(look, out_shardings=sharding.replicated(mesh))

        def run(images: jax.Array) -> dict[str, np.ndarray]:
            if min(images.shape[1:3]) < self.least:
                raise ValueError(
                    f"{self.kind} without resizing looks at pictures of at least {self.least} pixels, not "
                    f"{images.shape[2]} x {images.shape[1]}: choose another --resize"
                )
            with jax.set_mesh(mesh):
                return jax.device_get(compiled(params, images))

        return run


def name_of(kind: str, measure: str) -> str:
    """The full name of a measure by a kind of network, as `Features.name`."""
    table = INCEPTION if kind == "inception" else NAMES
    return f"{kind}/{table.get(measure, measure)}"


def check_kind(text: str, what: str = "features") -> str:
    """The kind of "KIND:FILE". ValueError for an unknown one; `what` is how the field is called."""
    return check_choice(text.partition(":")[0], FEATURES, what)


def load(
    text: str, config: Mapping[str, Any] | None = None, folder: Path | None = None, resize: str = "legacy", size: int = 0
) -> Features:
    """The network that `text` names (see above).

    Args:
      config: of the data that a probe is trained on, where it is to be trained (config.data, config.evaluation).
      folder: where a probe that is trained here is kept.
      resize: how pictures are brought to Inception's size, one of `models.inception.RESIZE`.
      size: the side of a probe trained here; default config.data.image_size.

    Raises:
      ValueError, FileNotFoundError: an unknown name; a file that isn't there, with what to fetch; data without labels.
    """
    check_choice(resize, RESIZE, "resize")
    kind, path = check(text, config, folder)
    if kind in FETCH:
        return {"inception": _inception, "clip": _clip, "dinov2": _dinov2}[kind](Path(path), resize)
    return _probe(kind, path, config, folder, size)


def check(text: str, config: Mapping[str, Any] | None = None, folder: Path | None = None) -> tuple[str, str]:
    """(kind, path) of what `text` names, before anything is read or trained; arguments and errors as of `load`."""
    kind, _, path = text.partition(":")
    if config is not None and (medium := build.make_medium(config)).axes != 2:
        raise ValueError(
            f"features={text!r}: networks look at two axes, as pictures and spectrograms have; config.data.medium="
            f"{medium.name!r} has {medium.axes}, and is not measured by distances"
        )
    if check_choice(kind, FEATURES, "features") == "auto":
        kind, path = choose_kind(config)
    path = os.path.expanduser(path)  # a shell leaves the ~ behind a colon as it is
    if config is not None and kind in FETCH and (medium := build.make_medium(config)).channels != 3:
        raise ValueError(
            f"features={text!r}: it looks at 3 channels, and {medium.many} have {medium.channels}; choose 'classifier' or "
            "'contrastive'"
        )
    if path and not Path(path).exists() or kind in FETCH and not path:
        fetch = f"; {FETCH[kind]}" if kind in FETCH else ""
        raise FileNotFoundError(f"features={text!r}: {'there is no such file' if path else 'a file is needed'}{fetch}")
    if kind in PROBES and not path and jax.process_count() > 1 and not (folder and _is_trained(folder / kind)):
        raise ValueError(f"{folder and folder / kind} holds no trained {kind} yet: one process alone trains it "
                         "(python -m ldm_jax.probes train), or name a network's file")  # fmt: skip
    return kind, path


def _is_trained(place: Path) -> bool:
    return probes.is_probe(place) and bool(probes.described(place)["measured"])


def choose_kind(config: Mapping[str, Any] | None) -> tuple[str, str]:
    """What "auto" means for the data of a config, and its file."""
    if config is None:
        raise ValueError("features='auto' needs a working directory, whose data say what can be trained; name a network")
    if path := config.get("evaluation", {}).get("inception_path", ""):
        return "inception", path
    return ("classifier" if labelled(config) else "contrastive"), ""


def labelled(config: Mapping[str, Any]) -> bool:
    """Whether the training pictures have labels."""
    try:
        build.make_source(config, "train", ("label",))
    except ValueError:
        return False
    return True


def digest(params: PyTree) -> str:
    """Equal for equal parameters: SHA-256 of the checksums of all arrays."""
    found = sorted(checksums({"params": params}).items())
    return hashlib.sha256(repr([(name, int(value)) for name, value in found]).encode()).hexdigest()[:16]


def _on_device(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), params)


def _inception(path: Path, resize: str) -> Features:
    net, params = models.InceptionV3(resize=resize), _on_device(weights.read_inception(path))

    def run(params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        found = net.apply({"params": params}, images)
        seen = {"features": found.features, "logits": found.logits_unbiased}
        return seen if resize == "none" else seen | {"spatial": found.spatial}

    about = {"network": "InceptionV3 (2015-12-05)", "file": path.name, "weights": digest(params), "resize": resize}
    return Features("inception", about, params, run, least=75 if resize == "none" else 1)


def _clip(path: Path, resize: str) -> Features:
    clip = load_clip(path)
    size = clip.size

    def run(params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        images = jnp.clip(jax.image.resize(images, (len(images), *size, 3), "cubic"), -1, 1)
        return {"features": unit(clip.image.apply({"params": params}, models.clip_normalize(images)).embeds)}

    about = {"network": "CLIP's image tower", "file": path.name, "weights": digest(clip.image_params), "resize": "bicubic"}
    reads = clip.text is not None and clip.tokenizer is not None
    return Features("clip", about, clip.image_params, run, words=clip.words if reads else None)


def _dinov2(path: Path, resize: str) -> Features:
    fields, params = weights.read_dinov2(path)
    net, params = models.DINOv2(**fields), _on_device(params)
    size = fields["image_size"]

    def run(params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        images = jnp.clip(jax.image.resize(images, (len(images), size, size, 3), "cubic"), -1, 1)
        return {"features": net.apply({"params": params}, models.imagenet_normalize(images))}

    about = {"network": "DINOv2", "file": path.name, "weights": digest(params), "resize": "bicubic", "size": [size, size]}
    return Features("dinov2", about, params, run)


def _probe(kind: str, path: str, config: Mapping[str, Any] | None, folder: Path | None, size: int) -> Features:
    if path:
        probe = probes.load(path)
        if probe.kind != kind:
            raise ValueError(f"features='{kind}:{path}': {path} is a {probe.kind}")
    else:
        probe = _trained(kind, config, folder, size)
    network = probe.network

    def run(params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        if images.shape[1:3] != tuple(probe.size):
            images = jax.image.resize(images, (len(images), *probe.size, images.shape[-1]), "bilinear")
        if kind == "contrastive":
            return {"features": network.apply({"params": params}, images, method="image")}
        seen = network.apply({"params": params}, images, method="features")
        return {"features": seen, "logits": network.apply({"params": params}, images)}

    measured = {name: round(value, 4) for name, value in probe.measured.items()}
    about = {"network": f"{kind} trained on the real pictures", "weights": digest(probe.params), "resize": "bilinear",
             "size": list(probe.size), **({"measured": measured} if measured else {})}  # fmt: skip
    return Features(kind, about, probe.params, run, class_names=probe.class_names if kind == "classifier" else None)


def _place_of(kind: str, config: Mapping[str, Any], folder: Path) -> Path:
    """Where the probe of these data is, or will be: folder/KIND, unless the one there learnt from others."""
    place = folder / kind
    if _is_trained(place) and not (place / LEARNT_FROM).is_file():  # by an earlier version
        return place
    if kind == "classifier" and not labelled(config):
        raise ValueError(
            f"features='classifier': {config['data']['path'] or config['data']['source']} has no labels to learn; choose "
            "'contrastive', which needs none, 'inception:FILE', or a classifier that is there, 'classifier:PROBE'"
        )
    if not _is_trained(place):
        return place
    known, source = read_json(place / LEARNT_FROM), build.make_source(config, "train", _columns(kind))
    if known["stamp"] == fingerprint.stamp(source) is not None:
        return place
    contents = fingerprint.contents(source)
    return place if known["contents"] == contents else folder / f"{kind}-{contents[:8]}"


def _columns(kind: str) -> tuple[str, ...]:
    return ("label",) if kind == "classifier" else ()


def _trained(kind: str, config: Mapping[str, Any] | None, folder: Path | None, size: int) -> probes.Probe:
    """The probe in `folder`, trained there now unless it is finished: by the first process, and read by all."""
    if config is None or folder is None:
        raise ValueError(f"features={kind!r} is trained on a working directory's pictures; without one, name a probe, "
                         f"{kind}:PROBE (python -m ldm_jax.probes train --kind {kind} --data FOLDER --out PROBE)")  # fmt: skip
    section = config["data"]
    place = _place_of(kind, config, folder)
    if jax.process_count() > 1 and not _is_trained(place):
        raise ValueError(f"{folder / kind} learnt from other pictures: one process alone trains another {kind}")
    size = size or max(build.image_size(config))

    def train() -> None:
        if _is_trained(place):
            return
        sources = [build.make_source(config, split, _columns(kind)) for split in ("train", "validation")]
        steps = config.get("evaluation", {}).get("probe_steps", PROBE_STEPS)
        seen = {split: build.make_probe_transform(config, split) for split in ("train", "validation")}
        flip, on_error = section.get("flip", False), section.get("on_error", "raise")
        made = probes.train(kind, sources[0], size, place, flip=flip, transform=seen["train"], steps=steps, on_error=on_error)
        measured = probes.measure(made, sources[1], seen["validation"], on_error) or {"steps": float(steps)}
        probes.write(dataclasses.replace(made, measured=measured), place)
        learnt_from = {"stamp": fingerprint.stamp(sources[0]), "contents": fingerprint.contents(sources[0])}
        write_json(place / LEARNT_FROM, learnt_from)

    distributed.on_first(f"training a {kind}", train)
    return probes.load(place)
