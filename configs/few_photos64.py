"""A few hundred photos of several kinds at 64 px, class-conditional, on two CPU cores.

    python train.py --config=few_photos64 --config.data.path=PHOTOS --config.first_stage.path=FIRST_STAGE
    python sample.py --workdir runs/few_photos64 --label roses

As configs/photos64.py, for so few photos that a network would soon know them by heart: every visit sees them turned, stretched
and moved another way, which the network is told (`data.augment`; Karras et al. 2022), a tenth of its features is dropped, and
the weights that are drawn with are those of the lowest held-out loss. FIRST_STAGE is the working directory of a first stage of
other photos, which serves these too, such as that of photos64; "" trains one here.
"""

from ml_collections import ConfigDict

from configs import photos64


def get_config() -> ConfigDict:
    config = photos64.get_config()
    config.name = "few_photos64"
    config.data.augment = 0.12
    config.latents.cache = False  # every visit is another view
    config.network.dropout = 0.1
    config.diffusion_train.steps = 2000
    config.diffusion_train.patience = 5  # looks at held-out photos in a row without a better one
    config.log.validation_every = 200
    config.evaluation.which = "best"
    return config
