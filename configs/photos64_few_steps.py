"""Photos of several kinds drawn in one to four steps, by any objective of `diffusion.few_steps`, on two CPU cores.

    python train.py --config=photos64 --config.data.path=PHOTOS                       # the first stage, and a teacher
    python train.py --config=photos64_few_steps:progressive --config.data.path=PHOTOS     # and progressive_4, progressive_2
    python sample.py --workdir runs/photos64_progressive_2 --label roses --steps 2

PHOTOS as configs/flowers64.py has it; after the colon what configs/shapes_few_steps.py lists.
"""

from ml_collections import ConfigDict

from configs import photos64, shapes_few_steps


def get_config(objective: str = "progressive") -> ConfigDict:
    return shapes_few_steps.few_steps(photos64.get_config(), objective)
