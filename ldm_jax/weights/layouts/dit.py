"""The tensors of the diffusion transformer (Peebles & Xie 2023), as in diffusers' `DiTTransformer2DModel`.

There every block owns an embedding of time and class (released weights hold the same one in each).
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.weights.naming import Layout


def dit(network: Mapping[str, Any]) -> Layout:
    return []
