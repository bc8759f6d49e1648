"""Retrieval-augmented diffusion: data bases of pictures, and what of them a drawing is conditioned on (Blattmann et al. 2022).

    python -m ldm_jax.retrieval build --data FLOWERS --embedder PROBE --out DATABASE
    python -m ldm_jax.retrieval find --database DATABASE --text "a photo of a daisy"

    cond = ldm.embed(ldm.params, [retrieval.condition("DATABASE", text="a photo of a daisy", k=4)])

PROBE is a contrastive probe (`python -m ldm_jax.probes train --kind contrastive`) or a folder of transformers' CLIP. A model
that was trained with one data base draws in the style of another if it is given that one's neighbours.
"""

from etils import epy

# When first used: `python -m ldm_jax.retrieval` reads its flags before jax is there.
with epy.lazy_api_imports(globals()):
    from ldm_jax.retrieval.database import INDICES, Database, NeighboursOf, load_database, search
    from ldm_jax.retrieval.embedders import Embedder, load_clip, load_embedder
    from ldm_jax.retrieval.query import build, condition, embed, embedder_of, find, read_query

__all__ = [
    "INDICES", "Database", "Embedder", "NeighboursOf", "build", "condition", "embed", "embedder_of", "find", "load_clip",
    "load_database", "load_embedder", "read_query", "search",
]  # fmt: skip
