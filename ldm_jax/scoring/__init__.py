"""How good pictures are: networks that look at them, what they are compared with, sweeps over ways of drawing, reports.

    python -m ldm_jax.evaluation --workdir runs/flowers --num 1000 --guidance_scale 1,2,3 --features classifier
    python -m ldm_jax.evaluation --samples pictures/ --reference photos/ --size 256 --features inception:FILE

`ldm_jax.evaluation` has the measures over arrays; here they meet models, data and files.
"""

from etils import epy

# When first used: what is to be measured is read before jax is there.
with epy.lazy_api_imports(globals()):
    from ldm_jax.scoring.evaluation import check, compare, evaluate, in_words
    from ldm_jax.scoring.features import Features, load
    from ldm_jax.scoring.measures import Measured, measure
    from ldm_jax.scoring.reference import Reference, of_data, read
    from ldm_jax.scoring.request import Request

__all__ = [
    "Features", "Measured", "Reference", "Request", "check", "compare", "evaluate", "in_words", "load", "measure", "of_data",
    "read",
]  # fmt: skip
