"""What diffusers' scheduler classes take: their parameters by name, and the settings of one config."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# What the constructors of diffusers' classes take. A config may hold more, left over from another
# class: diffusers ignores that.
_BETAS = "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type "
_TIMES = "timestep_spacing steps_offset "
_CLIP = "clip_sample clip_sample_range "
_THRESHOLD = "thresholding dynamic_thresholding_ratio sample_max_value "
_SIGMAS = "use_karras_sigmas use_exponential_sigmas use_beta_sigmas "
_FLOW = "use_flow_sigmas flow_shift use_dynamic_shifting time_shift_type "
_SOLVER = "solver_order solver_type lower_order_final "
_SDE = "algorithm_type final_sigmas_type lambda_min_clipped variance_type "
_STUDENT = "original_inference_steps timestep_scaling set_alpha_to_one rescale_betas_zero_snr "
_EDM = "sigma_min sigma_max sigma_data sigma_schedule num_train_timesteps prediction_type rho final_sigmas_type "
_DYNAMIC = "use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len invert_sigmas shift_terminal "
PARAMETERS = {
    name: frozenset(parameters.split())
    for name, parameters in {
        "DDPMScheduler": _BETAS + _TIMES + _CLIP + _THRESHOLD + "variance_type rescale_betas_zero_snr",
        "DDIMScheduler": _BETAS + _TIMES + _CLIP + _THRESHOLD + "set_alpha_to_one rescale_betas_zero_snr",
        "PNDMScheduler": _BETAS + _TIMES + "skip_prk_steps set_alpha_to_one",
        "EulerDiscreteScheduler": _BETAS + _TIMES + _SIGMAS + "interpolation_type sigma_min sigma_max timestep_type "
        "rescale_betas_zero_snr final_sigmas_type",
        "EulerAncestralDiscreteScheduler": _BETAS + _TIMES + "rescale_betas_zero_snr",
        "HeunDiscreteScheduler": _BETAS + _TIMES + _SIGMAS + _CLIP,
        "LMSDiscreteScheduler": _BETAS + _TIMES + _SIGMAS,
        "KDPM2DiscreteScheduler": _BETAS + _TIMES + _SIGMAS,
        "KDPM2AncestralDiscreteScheduler": _BETAS + _TIMES + _SIGMAS,
        "DPMSolverMultistepScheduler": _BETAS + _TIMES + _SIGMAS + _THRESHOLD + _FLOW + _SOLVER + _SDE + "euler_at_final "
        "use_lu_lambdas rescale_betas_zero_snr",
        "DPMSolverSinglestepScheduler": _BETAS + _SIGMAS + _THRESHOLD + _FLOW + _SOLVER + _SDE,
        "UniPCMultistepScheduler": _BETAS + _TIMES + _SIGMAS + _THRESHOLD + _FLOW + _SOLVER + "predict_x0 disable_corrector "
        "solver_p final_sigmas_type rescale_betas_zero_snr sigma_min sigma_max shift_terminal",
        "DEISMultistepScheduler": _BETAS + _TIMES + _SIGMAS + _THRESHOLD + _FLOW + _SOLVER + "algorithm_type",
        "LCMScheduler": _BETAS + _TIMES + _CLIP + _THRESHOLD + _STUDENT,
        "TCDScheduler": _BETAS + _TIMES + _CLIP + _THRESHOLD + _STUDENT,
        "EDMEulerScheduler": _EDM,
        "EDMDPMSolverMultistepScheduler": _EDM + _THRESHOLD + _SOLVER + "algorithm_type euler_at_final",
        "FlowMatchEulerDiscreteScheduler": _DYNAMIC + _SIGMAS + "num_train_timesteps shift time_shift_type stochastic_sampling",
        "FlowMatchHeunDiscreteScheduler": "num_train_timesteps shift",
    }.items()
}
# Names of settings that a pipeline has put into its scheduler's config and the file lacks: `from_config` doesn't pass them on.
SET_BY_PIPELINE = "_set_by_pipeline"
_NEUTRAL = {  # values that change nothing, of parameters without a counterpart
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "lambda_min_clipped": -np.inf,
    "time_shift_type": "exponential",
    "variance_type": "fixed_small",
}
# What a solver makes of the settings of another one that it is made from (`from_config`).
_DPM = {"solver_type": {"logrho bh1 bh2": "midpoint"}, "algorithm_type": {"deis": "dpmsolver++"}}
_CONVERTED = {
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverSinglestepScheduler": _DPM,
    "EDMDPMSolverMultistepScheduler": _DPM,
    "UniPCMultistepScheduler": {"solver_type": {"midpoint heun logrho": "bh2"}},
    "DEISMultistepScheduler": {
        "solver_type": {"midpoint heun bh1 bh2": "logrho"},
        "algorithm_type": {"dpmsolver dpmsolver++": "deis"},
    },
}


class Settings(dict):
    """What the class `name` takes of a config with its `_class_name`; knows which parameters have been read."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.name = config.get("_class_name")
        taken = PARAMETERS.get(self.name, ()) if isinstance(self.name, str) else ()
        super().__init__({k: v for k, v in config.items() if k in taken})
        for key, conversions in _CONVERTED.get(self.name, {}).items() if taken else ():
            for old, new in conversions.items():
                if self.get(key) in old.split():
                    self[key] = new

    def take(self, key: str, default: Any) -> Any:
        """The value of a parameter, which counts as read; the default where there is none, or None."""
        value = self.pop(key, default)
        return default if value is None else value

    def finish(self) -> None:
        """ValueError if a parameter is left that was not read and says more than nothing."""
        left = {k: v for k, v in self.items() if v not in (None, False, [], _NEUTRAL.get(k))}
        if left:
            raise ValueError(
                f"{self.name} has options without a counterpart here: {left}. Compose schedule, grid and sampler by hand."
            )
