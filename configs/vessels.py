"""Small volumes by class, spheres or tubes in noisy tissue, both stages, small enough for two CPU cores.

    python train.py --config=configs/vessels.py
    python sample.py --workdir runs/vessels --label tubes

Volumes of 32 x 32 x 32 voxels, made here on the fly; the first stage halves all three axes twice. For scans of your own:
--config.data.source=folder --config.data.path=FOLDER (.npy, .npz, folders of slices) --config.data.window=(low, high).
"""

from ml_collections import ConfigDict

from configs import flowers64, moving_shapes, shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.name = "vessels"
    config.data.medium = "volume"
    config.data.source = "vessels"
    config.data.image_size = 32  # of all three sides; or (depth, height, width)
    config.data.window = ()  # the numbers of a file that are black and white; (): all of an unsigned integer's
    config.data.examples = (1_500, 100)

    for section in (config.first_stage, config.network):
        moving_shapes.of_films(section)
        section.strides = (2, 2, 2)
        section.kernel_size = (3, 3, 3)
    config.first_stage.in_channels = config.first_stage.out_ch = 1
    config.first_stage.ch = 8
    config.first_stage_train.steps = 600
    config.first_stage_train.learning_rate = 4e-3
    config.first_stage_train.batch_size = 2
    config.log.validation_images = 32

    config.conditioner = flowers64.get_config().conditioner
    config.conditioner.n_classes = 3  # two, and the empty one
    config.network.context_dim = config.conditioner.embed_dim
    config.network.attention_resolutions = (2,)
    config.diffusion.scale = 0.5  # of the cosine, twice the noise: it hides a body in a volume less than one in a slice
    config.diffusion_train.steps = 1500
    config.diffusion_train.batch_size = 16
    config.sampling.guidance_scale = 2.0
    config.evaluation.prompts = 128  # volumes, which are read back
    return config
