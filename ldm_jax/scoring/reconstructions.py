"""What a first stage loses: real pictures beside their reconstructions, by rFID (or the like), PSNR, SSIM and LPIPS."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build, evaluation
from ldm_jax.first_stage import psnr
from ldm_jax.scoring.features import Features
from ldm_jax.scoring.looking import Pictures, features_of, of_source
from ldm_jax.training import sharding

PyTree = Any
Distance = Callable[[jax.Array, jax.Array], jax.Array]


def measure_reconstructions(
    spec: api.Specification,
    params: PyTree,
    source: Any,
    features: Features,
    mesh: Any,
    batch_size: int = 64,
    on_error: str = "raise",
    shown: int = 16,
    distance: Distance | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """Means over all pictures of a source, and uint8 [n, 2, H, W, 3], the first pictures beside their reconstructions.

    Names: "reconstruction/psnr", "/ssim", "/ms_ssim" (from 176 pixels on), "/lpips" with a `distance`, and
    "reconstruction/inception/fid" or what the features call it. Both pictures are rounded to 8 bits. ValueError for a model
    without a first stage.
    """
    if spec.first_stage.module is None:
        raise ValueError("this model draws in pixels: it has no first stage, and nothing to reconstruct")
    transform, medium = build.make_transform(spec.config), build.make_medium(spec.config)

    def look(params: PyTree, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        again = spec.decode(params, spec.encode(params, images))
        again = jnp.round((jnp.clip(again, -1, 1) + 1) * 127.5) / 127.5 - 1
        found = {"psnr": psnr(images, again)}
        side = min(images.shape[1:3])
        found |= {"ssim": evaluation.ssim(images, again)} if side >= 11 else {}
        found |= {"ms_ssim": evaluation.ms_ssim(images, again)} if side >= 176 else {}
        found |= {"lpips": distance(images, again)} if distance is not None else {}
        return again, found

    compiled = jax.jit(look, out_shardings=(sharding.batch_sharding(mesh), sharding.replicated(mesh)))
    run, sums, sets, pairs = features.on(mesh), {}, ([], []), []
    for batch in of_source(source, transform, batch_size, mesh, on_error):
        with jax.set_mesh(mesh):
            again, found = compiled(params, batch.images)
        kept = batch.rows >= 0
        for name, value in jax.device_get(found).items():
            sums.setdefault(name, []).append(np.float64(value)[kept])
        for parts, images in zip(sets, (batch.images, again)):
            parts.append(features_of(run, Pictures(batch.rows, images)))
        if sum(map(len, pairs)) < shown:
            both = [np.asarray(sharding.replicate(mesh, x))[kept] for x in (batch.images, again)]
            pairs.append(np.stack([evaluation.as_uint8(medium.shown(x)) for x in both], 1))
    values = {f"reconstruction/{name}": float(np.concatenate(each).mean()) for name, each in sums.items()}
    real, made = (evaluation.join(parts).features for parts in sets)
    if len(real) > 1:
        values[f"reconstruction/{features.name('frechet')}"] = evaluation.frechet_distance(made, real)
    return values, np.concatenate(pairs)[:shown]
