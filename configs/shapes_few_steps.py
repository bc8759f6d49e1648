"""Shapes drawn in one to four steps, by any objective of `diffusion.few_steps`, on two CPU cores.

    python train.py --config=configs/shapes.py --workdir=runs/shapes                        # for its first stage
    python train.py --config=configs/shapes_few_steps.py:mean_flow --config.first_stage.path=runs/shapes
    python sample.py --workdir runs/shapes_mean_flow --prompt "a red circle" --steps 2

After the colon: mean_flow (the default), shortcut. From nothing, or from the weights of an ordinary model of this process with
--config.diffusion_train.start_from=runs/shapes. Guidance is part of the training: pictures take one evaluation a step.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config(objective: str = "mean_flow") -> ConfigDict:
    config = shapes.get_config()
    config.name = f"shapes_{objective}"
    config.diffusion.objective = objective
    config.network.second_time = True
    config.sampling.sampler = "flow_map"
    config.sampling.steps = 4
    config.sampling.guidance_scale = 1.0  # what the training led by is in the network
    if objective == "mean_flow":
        config.diffusion.options.share = 0.25  # of the rows, those that step
        config.diffusion.options.guidance_scale = 3.0
        config.diffusion.options.guidance_mix = 0.0
        config.diffusion.options.improved = False
        config.diffusion.options.power = 1.0
    elif objective == "shortcut":
        config.diffusion.options.share = 0.25
        config.diffusion.options.finest = 128
        config.diffusion.options.guidance_scale = 3.0
    else:
        raise ValueError(f"shapes_few_steps:{objective}: there are mean_flow and shortcut")
    return config
