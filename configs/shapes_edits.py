"""Pictures changed as a sentence says (InstructPix2Pix, Brooks et al. 2023): "make it blue", "turn it into a star".

    python train.py                                                   # the model to go on from, runs/shapes
    python benchmarks/instructions.py make edits
    python train.py --config=shapes_edits --config.data.path=edits
    python sample.py --workdir runs/shapes_edits --prompt "make it blue" --picture edits/validation/before/0.png

config.data.path is a folder of pictures as they become, whose metadata.jsonl has the sentence as `caption` and the picture as
it was as `conditioning_file_name`. The network gets that picture's latents beside those that it draws, and doesn't see them at
first: it begins as the model of runs/shapes.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.name = "shapes_edits"
    config.stages = ("latents", "diffusion", "evaluation")
    config.data.source = "folder"
    config.data.path = "edits"
    config.first_stage.path = "runs/shapes"
    config.network.in_channels = 2 * config.first_stage.embed_dim
    prompt = config.conditioner
    config.conditioner = ConfigDict()
    config.conditioner.kind = "combined"
    config.conditioner.parts = ConfigDict({"prompt": prompt, "picture": {"kind": "instruct"}})
    config.conditioner.null_probability = 0.05  # of the sentence alone, of both, and of the picture alone
    config.diffusion_train.start_from = "runs/shapes"
    config.diffusion_train.steps = 1200
    config.diffusion_train.learning_rate = 3e-3
    config.sampling.guidance_scale = 3.0
    config.evaluation.prompts = 0  # which asks for things, not for changes
    return config
