"""Muon: momentum, orthogonalised (Jordan et al. 2024), for the matrices among the parameters; Adam for the rest.

optax's, with the same state and, to rounding, the same numbers; only the Newton-Schulz iteration takes fewer operations. X is
multiplied by polynomials of G = X^T X alone, which can wait until the end:

    X <- X q(G), q(G) = a + b G + c G^2        so  G <- q(G) G q(G)  and  P <- P q(G);  last  X P

G is square, with the shorter side of X. Of a 3x3 convolution's kernel, nine times as tall as wide, that leaves two fifths of
the work; a matrix less than twice as tall as wide is iterated on itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

PyTree = Any
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: the steepest at 0; singular values end within 0.7 and 1.2
ITERATIONS = 5
RMS = 0.2  # of an update before the learning rate, as Adam's is about (Liu et al. 2025)


def muon(
    learning_rate: Callable, adam_learning_rate: Callable, b1: float, b2: float, weight_decay: float, mu_dtype: str = "float32"
) -> optax.GradientTransformation:
    """Muon at `learning_rate(step)` for kernels, AdamW(b1, b2) without decay at `adam_learning_rate(step)` for all else."""
    return optax.partition(
        {
            "muon": optax.chain(
                scale_by_muon(ns_steps=0, mu_dtype=mu_dtype, weight_dimension_numbers=_sides),  # the momentum, of norm one
                optax.stateless(lambda updates, params: jax.tree.map(_of_size, updates)),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(learning_rate),
            ),
            "adam": optax.adamw(
                adam_learning_rate, b1=b1, b2=b2, weight_decay=0.0, mu_dtype=mu_dtype, nesterov=True
            ),
        },
        lambda params: jax.tree_util.tree_map_with_path(_label, params),
    )


def orthogonalised(x: jax.Array) -> jax.Array:
    """A matrix of Frobenius norm 1 -> one of the same singular vectors, whose singular values are near 1."""
    if x.shape[0] < x.shape[1]:
        return orthogonalised(x.T).T
    a, b, c = COEFFICIENTS
    square, one = x.shape[0] < 2 * x.shape[1], jnp.eye(x.shape[1], dtype=x.dtype)
    gram, whole = _product(x.T, x), None
    for i in range(ITERATIONS):
        factor = a * one + b * gram + c * _product(gram, gram)
        if square:
            x = _product(x, factor)
            gram = _product(x.T, x) if i + 1 < ITERATIONS else gram
        else:
            whole = factor if whole is None else _product(whole, factor)
            gram = _product(factor, _product(gram, factor)) if i + 1 < ITERATIONS else gram
    return x if square else _product(x, whole)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """In full float32: G has the squares of the singular values, and half of the digits would be lost."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _of_size(x: jax.Array) -> jax.Array:
    """The update of a kernel [..., out] from its momentum."""
    matrix = x.reshape(-1, x.shape[-1])
    return (RMS * max(matrix.shape) ** 0.5 * orthogonalised(matrix)).reshape(x.shape)


def _label(path: tuple, x: jax.Array) -> str:
    """Kernels of more than a few rows and columns are matrices [inputs, outputs]."""
    is_kernel = x.ndim >= 2 and path[-1] == jax.tree_util.DictKey("kernel")
    return "muon" if is_kernel and min(x.shape[-1], x.size // x.shape[-1]) > 4 else "adam"


def _sides(updates: PyTree) -> PyTree:
    return jax.tree.map(lambda x: MuonDimensionNumbers(tuple(range(x.ndim - 1)), (x.ndim - 1,)), updates)
