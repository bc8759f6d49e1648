"""Schedulers of diffusers by the names that people use for them: name -> (class, settings beside its defaults).

Every name with "_karras" at its end stands for the same with `use_karras_sigmas=True`, where the class has it.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.diffusion.recipe import Recipe
from ldm_jax.weights.descriptions import diffusers_export
from ldm_jax.weights.scheduler_settings import PARAMETERS, SET_BY_PIPELINE
from ldm_jax.weights.schedulers import CLASSES, scheduler

_SDE = {"algorithm_type": "sde-dpmsolver++"}
USUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", _SDE),
    "dpm_solver": ("DPMSolverSinglestepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
_KARRAS = "_karras"
_OF_FLOWS = {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"}
_OF_EDM = {"euler": "EDMEulerScheduler", "dpmpp_2m": "EDMDPMSolverMultistepScheduler"}


def _entries() -> dict[str, tuple[str, dict[str, Any]]]:
    """All names: the usual ones, those with Karras's grid, and the classes' own."""
    karras = {
        name + _KARRAS: (cls, settings | {"use_karras_sigmas": True})
        for name, (cls, settings) in USUAL.items()
        if "use_karras_sigmas" in PARAMETERS[cls]
    }
    return USUAL | karras | {cls: (cls, {}) for cls in CLASSES}


NAMES = _entries()


def of_process(diffusion: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a scheduler takes from what a model was trained with (config.diffusion)."""
    kept = ("_class_name", "beta_schedule", "beta_start", "beta_end", "trained_betas", "prediction_type", "num_train_timesteps")
    kept += ("rescale_betas_zero_snr", "use_flow_sigmas", "flow_shift")
    return {name: value for name, value in diffusers_export.scheduler(diffusion).items() if name in kept}


def by_name(name: str, of: Mapping[str, Any]) -> Recipe | None:
    """What people get by `Class.from_config(of, **settings)`: the class of a name in `NAMES` with its usual settings, and what
    it takes of the model's own scheduler, whose settings `of` are. Models that were trained otherwise (rectified flow, EDM) get
    the class of the same method for them. None where there is no such class.

    Raises ValueError for settings without a counterpart here.
    """
    cls, settings = NAMES[name]
    of = {key: value for key, value in of.items() if key not in of.get(SET_BY_PIPELINE, ())}
    own = str(of.get("_class_name", ""))
    plain = name.removesuffix(_KARRAS)
    if own.startswith("FlowMatch") or of.get("use_flow_sigmas"):
        shift = {"shift": of.get("shift", of.get("flow_shift", 1.0))}
        if plain in _OF_FLOWS and name == plain:
            kept = of if own.startswith("FlowMatch") else None
            return scheduler(_OF_FLOWS[plain], kept, num_train_timesteps=of.get("num_train_timesteps", 1000), **shift)
        if cls.startswith("FlowMatch"):
            return scheduler(cls, of)
        if "use_flow_sigmas" not in PARAMETERS[cls] or name != plain and not name.endswith(_KARRAS):
            return None
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift["shift"]}
        return scheduler(cls, of, **settings, **flow)
    if own.startswith("EDM"):
        edm = cls if cls.startswith("EDM") else _OF_EDM.get(name)
        return None if edm is None else scheduler(edm, of)
    return scheduler(cls, of, **settings)
