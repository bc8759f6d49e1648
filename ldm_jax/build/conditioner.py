"""How a model is told its condition, from config.conditioner."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import models
from ldm_jax.build.first_stage import make_first_stage
from ldm_jax.build.options import choose, compute_dtype, module_from, without
from ldm_jax.conditioning import (
    Conditioning,
    by_class,
    by_layout,
    by_low_image,
    by_map,
    by_mask,
    by_neighbours,
    by_text,
    unconditional,
)
from ldm_jax.data import degradation, layout

PyTree = Any

MODULES = {
    "class": models.ClassEmbedder,
    "text": models.TransformerEmbedder,
    "layout": models.TransformerEmbedder,
    "semantic": models.SpatialRescaler,
    "clip_text": models.CLIPText,
}
# Kinds without a module: what is given goes to the network as it is.
KINDS = {kind: kind for kind in ("none", *MODULES, "label", "superres", "inpaint", "retrieval")}
NOT_MODULE_FIELDS = ("kind", "tokenizer", "null_probability", "null_label", "layer", "pad_token_id", "path")


def make_conditioner(config: Mapping[str, Any]) -> Any:
    """The Linen module of config.conditioner, or None for kinds that have none."""
    section = config["conditioner"]
    kind = choose(KINDS, section["kind"], "config.conditioner.kind")
    if kind not in MODULES:
        return None
    fields = without(section, *NOT_MODULE_FIELDS)
    if kind != "semantic":  # which has no dtype: it is one resize
        fields["dtype"] = compute_dtype(config)
    return module_from(MODULES[kind], fields, "conditioner")


def superres_scale(config: Mapping[str, Any]) -> int:
    """How many times larger the picture gets: config.conditioner.scale. CompVis's models don't say it, but their networks have
    3 n^2 channels beside the latents for a picture n times as large as these."""
    if "scale" in config["conditioner"]:
        return config["conditioner"]["scale"]
    stage = make_first_stage(config)
    return stage.factor // math.isqrt((config["network"]["in_channels"] - stage.channels) // 3)


def conditioner_inputs(config: Mapping[str, Any]) -> PyTree:
    """Shapes of one input of the conditioner, or of what is given in its place, with leading axis 1."""
    conditioning = make_conditioning(config)
    if conditioning.null is not None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), conditioning.null)
    return _token_inputs(config)


def _token_inputs(config: Mapping[str, Any]) -> jax.ShapeDtypeStruct | None:
    module = make_conditioner(config)
    match config["conditioner"]["kind"]:
        case "text" | "layout":
            return jax.ShapeDtypeStruct((1, module.max_seq_len), jnp.int32)
        case "clip_text":
            return jax.ShapeDtypeStruct((1, module.max_position_embeddings), jnp.int32)
    return None


def make_conditioning(
    config: Mapping[str, Any], class_names: Sequence[str] | None = None, tokenizer: Any = None
) -> Conditioning:
    """How the model of `config` is told its condition.

    `class_names`: of the data set, for "class", "label" and "layout". `tokenizer`: has encode_one(text, length, strict), for
    text; without it the model takes token numbers only.
    """
    section, module = config["conditioner"], make_conditioner(config)
    kind, tokens = section["kind"], _token_inputs(config)

    def init(inputs):
        return lambda key: {} if module is None else models.initialize(module, key, inputs)

    def apply(params, values):
        out = module.apply({"params": params}, values)
        if kind == "clip_text":
            out = out.penultimate if section.get("layer") == "penultimate" else out.last
        return {"concat" if kind == "semantic" else "context": out}

    match kind:
        case "none":
            return unconditional()
        case "class" | "label":
            # the null class is the last row of the table, as in the paper's class-conditional ImageNet model and in DiT
            null = section.get("null_label", section["n_classes"] - 1) if kind == "class" else section["n_classes"]
            count = null if null >= 0 else section["n_classes"]
            names = list(class_names or map(str, range(count)))[:count]
            if kind == "label":
                return by_class(kind, lambda key: {}, lambda params, labels: {"label": labels}, names, null)
            return by_class(kind, init(jax.ShapeDtypeStruct((1,), jnp.int32)), apply, names, max(null, 0))
        case "text" | "clip_text":
            length, size = tokens.shape[1], module.vocab_size
            if tokenizer is not None and tokenizer.vocab_size > size:
                raise ValueError(f"config.conditioner.vocab_size={size}: the tokenizer has {tokenizer.vocab_size} tokens")
            return by_text(kind, init(tokens), apply, tokenizer, length)
        case "layout":
            code = layout.layout_code(module.max_seq_len, module.vocab_size)

            def encode(objects):
                boxes, labels = layout.read_layout(objects, class_names)
                if len(boxes) > code.objects:
                    raise ValueError(f"a layout of {len(boxes)} objects: this model has tokens for {code.objects}")
                return layout.encode(code, boxes, labels)

            return by_layout(init(tokens), apply, encode, code.objects, class_names)
        case "retrieval":
            return by_neighbours(section.get("neighbours", 1), config["network"]["context_dim"])

    side, factor = config["data"]["image_size"], make_first_stage(config).factor
    match kind:
        case "semantic":
            classes = module.in_channels
            one_hot = jax.ShapeDtypeStruct((1, side, side, classes), jnp.float32)
            return by_map(
                init(one_hot), lambda params, maps: apply(params, jax.nn.one_hot(maps, classes)), classes, side, factor
            )
        case "inpaint":
            return by_mask(factor, side)
    return by_low_image(superres_scale(config), factor, side, section.get("noise_levels", 0), degradation.add_noise)
