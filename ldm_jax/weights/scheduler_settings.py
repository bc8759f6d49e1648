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
_SMALL = 1e-12  # stands for more than 0
# Names of settings that a pipeline has put into its scheduler's config and the file lacks: `from_config` doesn't pass them on.
SET_BY_PIPELINE = "_set_by_pipeline"
_NEUTRAL = {  # values that change nothing, of parameters without a counterpart
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "lambda_min_clipped": -np.inf,
    "time_shift_type": "exponential",
    "variance_type": "fixed_small",
}
# What numbers may be: whole or not, from, to.
_RANGES: dict[str, tuple[bool, float, float]] = {
    "num_train_timesteps": (True, 2, 10**6),
    "steps_offset": (True, 0, 10**6),
    "original_inference_steps": (True, 1, 10**6),
    "solver_order": (True, 1, 3),
    "beta_start": (False, _SMALL, 1),
    "beta_end": (False, _SMALL, 1),
    **dict.fromkeys(
        "sigma_min sigma_max sigma_data rho shift flow_shift clip_sample_range sample_max_value timestep_scaling".split(),
        (False, _SMALL, 1 / _SMALL),
    ),
    "dynamic_thresholding_ratio": (False, _SMALL, 1),
}
_SWITCHES = frozenset(
    "clip_sample thresholding set_alpha_to_one rescale_betas_zero_snr skip_prk_steps lower_order_final euler_at_final "
    "predict_x0 use_lu_lambdas use_dynamic_shifting use_flow_sigmas stochastic_sampling invert_sigmas".split()
) | frozenset(_SIGMAS.split())
_IN_ORDER = (("beta_start", "beta_end"), ("sigma_min", "sigma_max"), ("original_inference_steps", "num_train_timesteps"))
# What a solver makes of the settings of another one that it is made from (`from_config`).
_DPM = {"solver_type": {"logrho bh1 bh2": "midpoint"}, "algorithm_type": {"deis": "dpmsolver++"}}
_FIXED = {"variance_type": {"fixed_small_log fixed_large fixed_large_log": "fixed_small"}}  # DDPM's, of no effect on these
_CONVERTED = {
    "DPMSolverMultistepScheduler": _DPM | _FIXED,
    "DPMSolverSinglestepScheduler": _DPM | _FIXED,
    "EDMDPMSolverMultistepScheduler": _DPM,
    "UniPCMultistepScheduler": {"solver_type": {"midpoint heun logrho": "bh2"}},
    "DEISMultistepScheduler": {
        "solver_type": {"midpoint heun bh1 bh2": "logrho"},
        "algorithm_type": {"dpmsolver dpmsolver++": "deis"},
    },
}


class Settings(dict):
    """What the class `name` takes of a config with its `_class_name`; knows which parameters have been read. ValueError for a
    number out of its range, a switch that is neither true nor false, and betas that are none."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.name = config.get("_class_name")
        taken = PARAMETERS.get(self.name, ()) if isinstance(self.name, str) else ()
        super().__init__({k: v for k, v in config.items() if k in taken})
        for key, conversions in _CONVERTED.get(self.name, {}).items() if taken else ():
            for old, new in conversions.items():
                if self.get(key) in old.split():
                    self[key] = new
        for key, value in self.items():
            if value is not None:
                self[key] = self._checked(key, value)
        for low, high in _IN_ORDER:
            if self.get(low) is not None and self.get(high) is not None and self[low] > self[high]:
                raise ValueError(f"{self.name}: {low}={self[low]} is above {high}={self[high]}")
        betas = self.get("trained_betas")
        if betas is not None and self.get("num_train_timesteps") not in (None, len(betas)):
            size = self["num_train_timesteps"]
            raise ValueError(f"{self.name}: {len(betas)} trained_betas for num_train_timesteps={size}: as many are needed")

    def _checked(self, key: str, value: Any) -> Any:
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if key in _RANGES:
            whole, least, most = _RANGES[key]
            if not number or not least <= value <= most or (whole and value != int(value)):
                what = f"a whole number from {least}" if whole else "a number above 0"
                raise ValueError(f"{self.name}: {key}={value!r} must be {what} and at most {most:g}")
            return int(value) if whole else value
        if key in _SWITCHES and not (isinstance(value, (bool, np.bool_)) or (number and value in (0, 1))):
            raise ValueError(f"{self.name}: {key}={value!r} must be true or false")
        if key == "trained_betas" and (np.ndim(value) != 1 or not _are_betas(value)):
            raise ValueError(f"{self.name}: trained_betas must be a list of numbers above 0 and at most 1")
        return value

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


def _are_betas(values: Any) -> bool:
    numbers = np.asarray(values)
    return len(numbers) > 1 and numbers.dtype.kind in "fiu" and bool(np.all((numbers > 0) & (numbers <= 1)))
