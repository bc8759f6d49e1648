"""Short films from words, small enough for two CPU cores: "a red circle moves left".

    python train.py                              # once: configs/shapes.py, in runs/shapes
    python train.py --config=configs/moving_shapes.py
    python sample.py --workdir runs/moving_shapes --prompt "a red circle moves left"

Films of 8 frames of 32 pixels, made here on the fly. Both stages go on from those of pictures: the first stage looks at frames
one by one, and the U-Net attends within frames and then over time. The evaluation reads colour, shape and direction back frame
by frame, beside what shuffled captions would get.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    config.name = "moving_shapes"
    config.data.medium = "film"
    config.data.source = "moving_shapes"
    with config.ignore_type():
        config.data.image_size = (8, 32, 32)  # frames, height, width
    config.data.frame_step = 1  # every how-manieth frame of a file is taken
    config.data.examples = (4_000, 200)

    of_films(config.first_stage)
    config.first_stage.path = "runs/shapes"  # of pictures; "": one of films is trained here
    config.first_stage_train.batch_size = 2  # films, of 8 frames each
    config.log.validation_images = 64
    config.log.validation_every = 400
    config.log.images_every = 800

    of_films(config.network)
    config.network.factorised_attention = True
    config.network.context_waves = 3  # words that say where and when are learnt by them
    # A frame among seven others alike can be seen through more noise than alone: of the cosine, three times the noise.
    config.diffusion.scale = 0.35
    config.diffusion_train.start_from = "runs/shapes"  # of pictures, which the frames are at first; "": from nothing
    config.diffusion_train.steps = 1600
    config.diffusion_train.batch_size = 8
    config.evaluation.prompts = 192  # every shape in every colour in every direction once
    return config


def of_films(section: ConfigDict) -> None:
    """Three axes: frames, height, width."""
    section.dims = 3
    section.strides = (1, 2, 2)  # by how much each level is smaller than the one before, along each axis
    section.kernel_size = (1, 3, 3)  # of convolutions, along each axis
    section.factorised_attention = False  # within frames, and then over time
