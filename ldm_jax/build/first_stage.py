"""The autoencoder and how it is trained, from config.first_stage, config.first_stage_loss and config.first_stage_train."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax import first_stage, latents, models
from ldm_jax.build.options import choose, compute_dtype, make_stage_optimizer, module_from, without
from ldm_jax.first_stage import codebook, shaping
from ldm_jax.training.optimizer import by_part, make_optimizer, trained_only
from ldm_jax.training.state import Gradient
from ldm_jax.weights.features import read_lpips

PyTree = Any


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """Images [B, H, W, 3] in [-1, 1] <-> raw latents [B, H / factor, W / factor, channels], as pure functions of params.

    encode(params, x) -> {"moments": [.., 2C]} (KL) or {"latents": [.., C]}, raw; decode(params, z) -> x.
    `module` is None where diffusion runs on pixels.
    """

    module: Any
    factor: int
    channels: int
    init: Callable[[jax.Array], PyTree]
    encode: Callable[[PyTree, jax.Array], dict[str, jax.Array]]
    decode: Callable[[PyTree, jax.Array], jax.Array]

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        if height % self.factor or width % self.factor or min(height, width) < self.factor:
            raise ValueError(f"image size {height} x {width}: both sides must be multiples of {self.factor}")
        return height // self.factor, width // self.factor, self.channels


def make_first_stage(config: Mapping[str, Any]) -> FirstStage:
    """The autoencoder of config.first_stage: kind "kl" or "vq"; "none" passes pixels through."""
    section = config["first_stage"]
    kind = choose({"kl": "kl", "vq": "vq", "none": "none"}, section["kind"], "config.first_stage.kind")
    if kind == "none":
        return FirstStage(None, 1, 3, lambda key: {}, lambda p, x: {"latents": x}, lambda p, z: z)
    fields = without(section, "kind", "path")
    fields["n_embed"] = fields.get("n_embed") or None
    module = module_from(models.Autoencoder, fields, "first_stage", dtype=compute_dtype(config))
    if (kind == "vq") != module.quantizes:
        raise ValueError(
            f"config.first_stage: kind={kind!r} with n_embed={module.n_embed}, fsq_levels={module.fsq_levels}: only VQ models "
            "have a codebook"
        )
    name = "moments" if kind == "kl" else "latents"
    side = module.resolution
    return FirstStage(
        module,
        2 ** (len(module.ch_mult) - 1),
        module.embed_dim,
        lambda key: models.initialize(module, key, jax.ShapeDtypeStruct((1, side, side, module.in_channels), jnp.float32)),
        lambda params, x: {name: module.apply({"params": params}, x, method="encode")},
        lambda params, z: module.apply({"params": params}, z, method="decode"),
    )


# Training


@dataclasses.dataclass(frozen=True)
class FirstStageTraining:
    """How the autoencoder is trained: functions of `params`, with the part "autoencoder" and, as the config wants them,
    "discriminator", "codebook" (moving averages), "lecam" and "alignment"; constants: "perceptual".

    init(key) -> params; gradients: see `training.state.make_train_step`; prepare(params, batches of images, key) -> params,
    with what is set from data before the first step; constants(): the parts that are not trained, read from files;
    distance(params, x, y): LPIPS [B], None without; not_averaged: parts that no average is kept of.
    """

    init: Callable[[jax.Array], PyTree]
    gradients: list[Callable]
    optimizer: Any
    prepare: Callable[[PyTree, Iterable[jax.Array], jax.Array], PyTree]
    constants: Callable[[], PyTree]
    distance: Callable[[PyTree, jax.Array, jax.Array], jax.Array] | None
    not_averaged: tuple[str, ...] = ("discriminator", "codebook", "lecam", "alignment")


def make_weights(section: Mapping[str, Any]) -> first_stage.Weights:
    """What counts for how much, of config.first_stage_loss."""
    try:
        return first_stage.Weights(
            section["pixel"],
            section["reduction"],
            section["perceptual_weight"],
            section["disc_weight"],
            section["disc_adaptive"],
            section["disc_start"],
            section["disc_loss"],
            section["r1_weight"],
            section["lecam_weight"],
        )
    except ValueError as error:
        raise ValueError(f"config.first_stage_loss: {error}") from None


def make_first_stage_training(config: Mapping[str, Any]) -> FirstStageTraining:
    """All that trains the autoencoder. ValueError for what can't be, before a file is read."""
    stage, section, train = make_first_stage(config), config["first_stage_loss"], config["first_stage_train"]
    module, weights = stage.module, make_weights(section)
    moving = _check_codebook(module, section)
    needs_features = section["perceptual_weight"] > 0 or section["alignment_weight"] > 0
    if needs_features:
        check_perceptual(section)
    perceptual = models.LPIPS(tuple(section["perceptual_widths"]))
    disc = models.Discriminator(
        section["disc_ndf"], section["disc_layers"], section["disc_actnorm"], dtype=compute_dtype(config)
    )
    image = jax.ShapeDtypeStruct((1, module.resolution, module.resolution, module.in_channels), jnp.float32)
    align_width = section["perceptual_widths"][3]

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, 3)
        params = {"autoencoder": stage.init(keys[0])}
        if weights.discriminator:
            params["discriminator"] = models.initialize(disc, keys[1], image)
        if weights.lecam:
            params["lecam"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
        if moving:
            params["codebook"] = codebook.averages(_codes(params))
        if section["alignment_weight"]:
            scale = module.embed_dim**-0.5
            params["alignment"] = {"projection": scale * jax.random.normal(keys[2], (module.embed_dim, align_width))}
        return params

    def distance(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        return perceptual.apply({"params": params["perceptual"]}, x, y)

    networks = first_stage.Networks(
        _make_features(module, section, perceptual, moving),
        lambda params, h: models.last_layer(params, h, module.dtype),
        distance,
        lambda params, x: disc.apply({"params": params}, x),
    )

    def prepare(params: PyTree, batches: Iterable[jax.Array], key: jax.Array) -> PyTree:
        batches = iter(batches)
        if section["codebook_kmeans"]:
            encode = jax.jit(lambda params, x: module.apply(
                {"params": params}, module.apply({"params": params}, x, method="encode"), method="project"
            ))  # fmt: skip
            found = (encode(params["autoencoder"], next(batches)) for _ in range(section["codebook_kmeans"]))
            z = [multihost_utils.process_allgather(z, tiled=True).reshape(-1, module.embed_dim) for z in found]
            z = np.concatenate(z)
            codes = codebook.k_means(z, module.n_embed, key)
            quantize = {"embedding": {"embedding": codes}}
            params = {**params, "autoencoder": {**params["autoencoder"], "quantize": quantize}}
            if moving:
                params["codebook"] = codebook.averages(codes)
        if weights.discriminator and section["disc_actnorm"]:
            params = {**params, "discriminator": models.calibrate(disc, params["discriminator"], next(batches))}
        return params

    frozen = tuple(train["frozen"])
    if unknown := sorted(set(frozen) - {"encoder", "decoder", "quant_conv", "post_quant_conv", "quantize"}):
        raise ValueError(f"config.first_stage_train.frozen: {unknown[0]!r} is no part of the autoencoder")
    if moving and "quantize" in frozen:
        raise ValueError("config.first_stage_train.frozen: 'quantize' can't be, with first_stage_loss.codebook='ema'")
    optimizer, disc_learning_rate = make_stage_optimizer(train), section["disc_learning_rate"] or train["learning_rate"]
    parts = {"autoencoder": trained_only(optimizer, frozen) if frozen else optimizer}
    if weights.discriminator:
        # the reference's Adam, whatever optimizer the autoencoder has
        adam = {"b1": 0.5, "b2": 0.9, "weight_decay": 0.0, "clip_norm": train["clip_norm"]}
        parts["discriminator"] = make_optimizer("adamw", disc_learning_rate, train["steps"], **adam)
    if section["alignment_weight"]:
        parts["alignment"] = make_optimizer("adamw", disc_learning_rate, train["steps"], weight_decay=0.0)
    turns = first_stage.make_gradients(networks, weights, section["alternate"])
    gradients = [lambda params, batch, key, step, turn=turn: Gradient(*turn(params, batch, key, step.number)) for turn in turns]
    constants = (lambda: {"perceptual": load_perceptual(section)}) if needs_features else dict
    return FirstStageTraining(
        init, gradients, by_part(parts), prepare, constants, distance if section["perceptual_weight"] else None
    )


def _codes(params: PyTree) -> jax.Array:
    return params["autoencoder"]["quantize"]["embedding"]["embedding"]


def _check_codebook(module: models.Autoencoder, section: Mapping[str, Any]) -> bool:
    """Whether the codebook follows moving averages. ValueError for options that need a codebook, or that kind of one."""
    kind = choose({"gradient": "gradient", "ema": "ema"}, section["codebook"], "config.first_stage_loss.codebook")
    moving = kind == "ema"
    if (moving or section["codebook_kmeans"]) and not module.n_embed:
        raise ValueError(
            f"config.first_stage_loss.codebook={kind!r}, codebook_kmeans={section['codebook_kmeans']}: this first stage has no "
            "learnt codebook (first_stage.n_embed)"
        )
    if section["codebook_restart"] and not moving:
        raise ValueError("config.first_stage_loss.codebook_restart: only codes that follow moving averages (codebook='ema') do")
    return moving


def _make_features(module: models.Autoencoder, section: Mapping[str, Any], perceptual: models.LPIPS, moving: bool) -> Callable:
    """`features` of `first_stage.Networks`."""

    def features(params: PyTree, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, tuple[dict, PyTree]]:
        z_key, revive_key, *dropout_keys = jax.random.split(key, 4)
        own = params["autoencoder"]

        def apply(method: str, *arguments, i: int = 0, **options):
            return module.apply({"params": own}, *arguments, **options, method=method, rngs={"dropout": dropout_keys[i]})

        encoded, assigned = apply("encode", x, train=True), {}
        if module.quantizes:
            z = apply("project", encoded)
            codes, indices = apply("quantize", encoded)
            metrics = codebook.usage(codebook.counts(indices, module.codes))
            if moving:
                penalty = section["beta"] * jnp.square(z - jax.lax.stop_gradient(codes)).mean()
                seen = jax.lax.stop_gradient(z)
                average = codebook.move(params["codebook"], seen, indices, section["codebook_decay"])
                book = codebook.centres(average)
                if section["codebook_restart"]:
                    book, average, dead = codebook.revive(book, average, seen, section["codebook_restart"], revive_key)
                    metrics["codes_revived"] = dead
                assigned = {"codebook": average, "autoencoder": {"quantize": {"embedding": {"embedding": book}}}}
            else:
                penalty = codebook.codebook_loss(z, codes, section["beta"], section["legacy_beta"]) if module.n_embed else 0.0
            metrics["codebook_loss"] = jnp.asarray(penalty, jnp.float32)
            penalty = section["codebook_weight"] * metrics["codebook_loss"]
            z = codebook.straight_through(z, codes)
        else:
            kl = latents.kl_divergence(encoded).mean()
            metrics, penalty = {"kl": kl}, section["kl_weight"] * kl
            z = latents.sample_posterior(encoded, z_key)
        # shaping terms are means; under a sum over pixels they count as every pixel does
        numbers = x[0].size if section["reduction"] == "sum" else 1
        if section["equivariance_weight"]:
            h = apply("decode", shaping.half(z), train=True, quantize=False, features=True, i=1)
            small = models.last_layer(own["decoder"]["conv_out"], h, module.dtype)
            metrics["equivariance"] = jnp.abs(small - shaping.half(x)).mean()
            penalty = penalty + section["equivariance_weight"] * numbers * metrics["equivariance"]
        if section["alignment_weight"]:
            known = perceptual.apply({"params": params["perceptual"]}, x, method="features")[3]
            metrics["alignment"] = shaping.alignment(z, known, params["alignment"]["projection"])
            penalty = penalty + section["alignment_weight"] * numbers * metrics["alignment"]
        return apply("decode", z, train=True, quantize=False, features=True, i=1), penalty, (metrics, assigned)

    return features


def check_perceptual(section: Mapping[str, Any]) -> None:
    """ValueError unless the files for LPIPS are named and there."""
    path = section["perceptual_path"]
    if path == "random":
        return
    what = "VGG16's and LPIPS's weights"
    if not path or not Path(path).exists():
        raise ValueError(
            f"config.first_stage_loss.perceptual_path={path!r}: no such file of {what}. Download torchvision's VGG16 "
            "(https://download.pytorch.org/models/vgg16-397923af.pth) and LPIPS's linear layers "
            "(https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1/vgg.pth), name them in perceptual_path and "
            "perceptual_linear_path; .pth files are read as they are. A CompVis first stage's model.ckpt holds both. Or train "
            "without: perceptual_weight=0; or on features of an untrained network: perceptual_path='random'"
        )


def load_perceptual(section: Mapping[str, Any]) -> PyTree:
    """LPIPS's parameters from the files named; "random": an untrained network, always the same."""
    if section["perceptual_path"] == "random":
        module, image = models.LPIPS(tuple(section["perceptual_widths"])), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        return models.initialize(module, jax.random.key(0), image, image)
    found = read_lpips(section["perceptual_path"], section["perceptual_linear_path"] or None)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), found)
