"""Shapes drawn in one to four steps, by any objective of `diffusion.few_steps`, on two CPU cores.

    python train.py --config=configs/shapes.py --workdir=runs/shapes                    # the first stage, and a teacher
    python train.py --config=configs/shapes_few_steps.py:progressive                    # and progressive_4, progressive_2
    python sample.py --workdir runs/shapes_progressive_2 --prompt "a red circle" --steps 2

After the colon: mean_flow (the default), shortcut, consistency, scm, which train from nothing or, with
--config.diffusion_train.start_from=runs/shapes, from the weights of an ordinary model of the same process (mean_flow and scm
with --config.diffusion.time_scale=1000, that model's); and consistency_distillation, scm_distillation, latent_consistency,
progressive, reflow, which learn from that model and start from its weights. progressive draws in eight steps;
progressive_4, progressive_2 and progressive_1 are its next rounds, each from the one before.
All use the first stage of runs/shapes. Guidance is part of the training, where the objective knows it: pictures take one
evaluation a step. reflow's teacher is a model of schedule "flow", prediction "flow".
"""

from ml_collections import ConfigDict

from configs import shapes

# config.diffusion.options of each.
OPTIONS = {
    "mean_flow": {"share": 0.25, "guidance_scale": 3.0, "guidance_mix": 0.0, "improved": False, "power": 1.0},
    "shortcut": {"share": 0.25, "finest": 128, "guidance_scale": 3.0},
    "consistency": {"fewest": 10, "most": 160, "target": "online", "times_options": {"mean": -0.4, "std": 2.0}},
    "consistency_distillation": {
        "intervals": 40, "target": "average", "guidance_scale": 3.0, "times_options": {"mean": -0.4, "std": 2.0},
    },
    "scm": {"warmup": 500, "times_options": {"mean": -0.3, "std": 1.4}},
    "scm_distillation": {"warmup": 500, "guidance_scale": 3.0, "times_options": {"mean": -0.3, "std": 1.4}},
    "latent_consistency": {"intervals": 50, "least_scale": 1.0, "most_scale": 5.0, "target": "average"},
    "progressive": {"student_steps": 8, "guidance_scale": 0.0},  # 0: the teacher's
    "progressive_4": {"student_steps": 4, "guidance_scale": 1.0},  # the teacher is led already
    "progressive_2": {"student_steps": 2, "guidance_scale": 1.0},
    "progressive_1": {"student_steps": 1, "guidance_scale": 1.0},
    "reflow": {"teacher_steps": 16, "guidance_scale": 3.0},
}  # fmt: skip
BEFORE = {"progressive_4": "progressive", "progressive_2": "progressive_4", "progressive_1": "progressive_2"}
SAMPLERS = {"mean_flow": "flow_map", "shortcut": "flow_map", "progressive": "ddim", "reflow": "euler"}
STUDENTS = ("consistency_distillation", "scm_distillation", "latent_consistency", "progressive", "reflow")


def get_config(objective: str = "mean_flow") -> ConfigDict:
    return few_steps(shapes.get_config(), objective)


def few_steps(config: ConfigDict, asked: str) -> ConfigDict:
    """The config of an ordinary model, trained into runs/NAME, as one of an objective of few steps: `runs/NAME_OBJECTIVE`."""
    if asked not in OPTIONS:
        raise ValueError(f"{config.name}_few_steps:{asked}: after the colon comes one of {', '.join(OPTIONS)}")
    teacher = f"runs/{config.name}"
    objective = "progressive" if asked.startswith("progressive") else asked
    config.stages = ("latents", "diffusion", "evaluation")
    config.first_stage.path = config.first_stage.path or teacher  # of a teacher that has another's: that one
    config.network.second_time = objective in ("mean_flow", "shortcut")
    config.diffusion.objective = objective
    config.diffusion.options = ConfigDict(OPTIONS[asked])
    if "times_options" in OPTIONS[asked]:
        config.diffusion.time_sampling = "log_normal"
    if objective in ("latent_consistency", "progressive"):
        config.diffusion.time_sampling = "uniform"  # over its steps
    if objective == "progressive":
        config.diffusion.weighting = "truncated_snr"
        config.diffusion.options.guidance_scale = config.diffusion.options.guidance_scale or config.sampling.guidance_scale
        config.diffusion_train.steps = 500
        config.diffusion_train.learning_rate = 2e-3
    if objective == "reflow":
        config.diffusion.schedule = "flow"
        config.diffusion.scale = 1.0
        config.diffusion.prediction = "flow"
    if objective in ("mean_flow", "scm"):
        # The network is told times up to this instead of 1000, whose fast sinusoids make derivatives in time large (Lu & Song
        # 2024, section 4.1). With start_from: the one of that model, 1000.
        config.diffusion.time_scale = 4.0
    if objective in STUDENTS:
        config.diffusion_train.start_from = f"{teacher}_{BEFORE[asked]}" if asked in BEFORE else teacher
    config.sampling.sampler = SAMPLERS.get(objective, "consistency")
    config.sampling.steps = OPTIONS[asked].get("student_steps", 4)
    config.sampling.guidance_scale = 1.0  # what the training led by is in the network
    if objective == "latent_consistency":
        config.network.guidance_dim = 64
        config.sampling.guidance_scale = 3.0  # told to the network
    config.name += f"_{asked}"
    return config
