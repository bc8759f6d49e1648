"""The autoencoder and how it is trained, from config.first_stage, config.first_stage_loss and config.first_stage_train."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import first_stage, models
from ldm_jax.build.options import compiler, compute_dtype, image_size, make_stage_optimizer, without
from ldm_jax.data.tokenizer import END
from ldm_jax.first_stage import FirstStage, FirstStageProgram, LatentTerms, LossWeights, Parts
from ldm_jax.media import make_medium
from ldm_jax.primitives.choices import check_choice, construct
from ldm_jax.training.optimizer import by_part, make_optimizer, trained_only
from ldm_jax.training.state import from_loss

POSTERIORS = ("sample", "mode")  # what config.latents.posterior may be


def make_first_stage(config: Mapping[str, Any]) -> FirstStage:
    """The autoencoder of config.first_stage: kind "kl" or "vq", "text" of tokens; "none" passes pixels through."""
    section = config["first_stage"]
    kind = check_choice(section["kind"], ("kl", "vq", "text", "none"), "config.first_stage.kind")
    if kind == "text":
        return make_text_stage(config)
    if kind == "none":
        size = image_size(config)
        return FirstStage(factors=(1,) * len(size), channels=make_medium(config["data"]).channels, size=size)
    fields = without(section, "kind", "path", "force_upcast")
    fields["n_embed"] = fields.get("n_embed") or None
    module = construct(models.Autoencoder, fields | {"dtype": first_stage_dtype(config)}, "config.first_stage")
    if (kind == "vq") != module.quantizes:
        raise ValueError(
            f"config.first_stage: kind={kind!r} with n_embed={module.n_embed}, fsq_levels={module.fsq_levels}: only VQ models "
            "have a codebook"
        )
    size = (module.resolution,) * 2 if module.dims == 2 else image_size(config)
    return FirstStage(module, module.factors, module.embed_dim, size, samples=samples_posterior(config))


def make_text_stage(config: Mapping[str, Any]) -> FirstStage:
    """The autoencoder of sequences: `length` and `vocab_size` are config.data.image_size and config.data.vocab_size."""
    data, section = config["data"], config["first_stage"]
    if data.get("medium") != "text":
        raise ValueError(f"config.first_stage.kind='text' is of tokens: config.data.medium={data.get('medium', 'image')!r}")
    (length,) = size = image_size(config)
    fields = without(section, "kind", "path", "force_upcast")
    known = {"vocab_size": data["vocab_size"], "length": length, "dtype": first_stage_dtype(config)}
    module = construct(models.TextAutoencoder, fields | known, "config.first_stage")
    if length % module.latents:
        raise ValueError(f"config.data.image_size={size}: must be a multiple of config.first_stage.latents={module.latents}")
    return FirstStage(module, (length // module.latents,), module.embed_dim, size, samples=samples_posterior(config))


def samples_posterior(config: Mapping[str, Any]) -> bool:
    """config.latents.posterior: whether the diffusion model learns draws from it, or its means."""
    chosen = config.get("latents", {}).get("posterior", "sample")
    return check_choice(chosen, POSTERIORS, "config.latents.posterior") == "sample"


def first_stage_dtype(config: Mapping[str, Any]) -> Any:
    """What the autoencoder computes in: config.dtype, or float32 where config.first_stage.force_upcast says that its
    activations are too large for less, as those of Stable Diffusion XL's."""
    return jnp.float32 if config["first_stage"].get("force_upcast") else compute_dtype(config)


def make_loss_weights(section: Mapping[str, Any]) -> LossWeights:
    """What counts for how much in pictures, of config.first_stage_loss."""
    names = ("pixel", "reduction", "perceptual_weight", "disc_weight", "disc_adaptive", "disc_start", "disc_loss", "r1_weight")
    later = {"factor": section.get("disc_factor", 1.0), "log_variance": section.get("log_variance", 0.0)}  # in newer configs
    if section.get("stft_weight", 0.0):
        later |= {"stft": section["stft_weight"], "windows": tuple(section["stft_windows"])}
    try:
        return LossWeights(*(section[name] for name in (*names, "lecam_weight")), **later)
    except ValueError as error:
        raise ValueError(f"config.first_stage_loss: {error}") from None


def make_latent_terms(section: Mapping[str, Any], module: models.Autoencoder) -> LatentTerms:
    """What counts for how much in latents. ValueError for options that need a codebook, that kind of one, or none."""
    kind = check_choice(section["codebook"], ("gradient", "ema"), "config.first_stage_loss.codebook")
    terms = LatentTerms(
        kl=section["kl_weight"],
        codebook=kind,
        codebook_weight=section["codebook_weight"],
        decay=section["codebook_decay"],
        kmeans=section["codebook_kmeans"],
        restart=section["codebook_restart"],
        beta=section["beta"],
        legacy_beta=section["legacy_beta"],
        equivariance=section["equivariance_weight"],
        alignment=section["alignment_weight"],
        noise=section.get("latent_noise", 0.0),  # in newer configs
    )
    if (terms.moving or terms.kmeans) and not module.n_embed:
        raise ValueError(
            f"config.first_stage_loss.codebook={kind!r}, codebook_kmeans={terms.kmeans}: this first stage has no learnt "
            "codebook (first_stage.n_embed)"
        )
    if terms.noise and module.quantizes:
        raise ValueError(
            f"config.first_stage_loss.latent_noise={terms.noise}: latents of a codebook are codes, which noise makes others "
            "or leaves as they are; set it to 0, or config.first_stage.kind='kl'"
        )
    if terms.restart and not terms.moving:
        raise ValueError("config.first_stage_loss.codebook_restart: only codes that follow moving averages (codebook='ema') do")
    return terms


def make_perceptual(section: Mapping[str, Any]) -> models.LPIPS:
    """The perceptual network of config.first_stage_loss; films and volumes are frames to it, one after the other."""
    return models.LPIPS(tuple(section["perceptual_widths"]))


def make_first_stage_program(config: Mapping[str, Any]) -> FirstStageProgram:
    """All that trains the autoencoder. ValueError for what can't be, before a file is read."""
    if config["first_stage"]["kind"] == "text":
        return make_text_program(config)
    stage, section, train = make_first_stage(config), config["first_stage_loss"], config["first_stage_train"]
    weights, terms = make_loss_weights(section), make_latent_terms(section, stage.module)
    dims, halved = stage.module.dims, tuple(min(factor, 2) for factor in stage.factors)
    disc = models.Discriminator(
        section["disc_ndf"], section["disc_layers"], section["disc_actnorm"], compute_dtype(config), dims, halved
    )
    if weights.perceptual and dims == 1:
        raise ValueError("config.first_stage_loss.perceptual_weight: LPIPS sees pictures, or frames; set it to 0 with dims=1")
    if weights.stft and dims != 1:
        raise ValueError(f"config.first_stage_loss.stft_weight: spectra are of waveforms; set it to 0 with dims={dims}")
    if weights.stft and not weights.windows:
        raise ValueError(f"config.first_stage_loss.stft_windows=(): spectra of no window, with stft_weight={weights.stft}")
    if weights.stft and (wrong := [n for n in weights.windows if n < 8 or n % 4 or n > 2 * image_size(config)[0]]):
        raise ValueError(
            f"config.first_stage_loss.stft_windows: {wrong[0]} must be a multiple of 4, from 8 to twice the length of a sound"
        )
    if terms.alignment and dims != 2:
        raise ValueError(f"config.first_stage_loss.alignment_weight: features are of pictures; set it to 0 with dims={dims}")
    parts = Parts(stage, make_perceptual(section), disc, section["perceptual_widths"][3])
    frozen = tuple(train["frozen"])
    if unknown := sorted({*frozen} - {*first_stage.PARTS}):
        raise ValueError(f"config.first_stage_train.frozen: {unknown[0]!r} is no part of the autoencoder")
    if terms.moving and "quantize" in frozen:
        raise ValueError("config.first_stage_train.frozen: 'quantize' can't be, with first_stage_loss.codebook='ema'")
    if terms.restart and train.get("accumulate", 1) > 1:
        raise ValueError(
            f"config.first_stage_loss.codebook_restart={terms.restart} counts over whole batches, and "
            f"config.first_stage_train.accumulate={train['accumulate']} looks at parts: set codebook_restart=0 or accumulate=1"
        )
    optimizer, disc_learning_rate = make_stage_optimizer(train), section["disc_learning_rate"] or train["learning_rate"]
    by_name = {"autoencoder": trained_only(optimizer, frozen) if frozen else optimizer}
    # the reference's Adam, whatever optimizer the autoencoder has
    adam = functools.partial(make_optimizer, "adamw", disc_learning_rate, train["steps"], weight_decay=0.0)
    if weights.discriminator:
        by_name["discriminator"] = adam(b1=0.5, b2=0.9, clip_norm=train["clip_norm"])
    if terms.alignment:
        by_name["alignment"] = adam()
    image = jax.ShapeDtypeStruct((train["batch_size"], *image_size(config), stage.module.in_channels), jnp.float32)
    return FirstStageProgram(
        init=parts.init(weights, terms),
        gradients=first_stage.make_gradients(parts.networks(weights, terms), weights, section["alternate"]),
        optimizer=by_part(by_name),
        batch={"image": image},
        constants=parts.constants(weights, terms),
        ema_decay=train["ema_decay"],
        not_averaged=first_stage.NOT_AVERAGED,
        accumulate=train.get("accumulate", 1),
        compiler=compiler(config),
        prepare=parts.prepare(weights, terms),
        distance=parts.distance if weights.perceptual else None,
    )


def make_text_program(config: Mapping[str, Any]) -> FirstStageProgram:
    """All that trains the autoencoder of sequences; of config.first_stage_loss it reads kl_weight."""
    stage, train = make_first_stage(config), config["first_stage_train"]
    if train["frozen"]:
        raise ValueError(f"config.first_stage_train.frozen={train['frozen']}: of text all is trained; set it to ()")
    loss = first_stage.sequences.make_loss(stage.module, config["first_stage_loss"]["kl_weight"], END)
    tokens = jax.ShapeDtypeStruct((train["batch_size"], *stage.size, 1), jnp.float32)
    return FirstStageProgram(
        init=lambda key: {"autoencoder": stage.init(key)},
        gradients=[from_loss(loss)],
        optimizer=make_stage_optimizer(train),
        batch={"image": tokens},
        ema_decay=train["ema_decay"],
        accumulate=train.get("accumulate", 1),
        compiler=compiler(config),
        loss=loss,
        prepare=lambda params, batches, key, trained=False: params,
        distance=None,
    )
