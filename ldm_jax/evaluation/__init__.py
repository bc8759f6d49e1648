"""What pictures are worth: measures over arrays and over features of them.

Statistics of features are float64 and numpy's, whatever device the features came from; measures of pairs of pictures are
jax functions that may be compiled into a validation step.
"""

from ldm_jax.evaluation.frechet import Moments, frechet_distance, frechet_from_moments, merge, moments, moments_of
from ldm_jax.evaluation.inception_score import inception_score
from ldm_jax.evaluation.kernel import kernel_distance, kernel_distance_of_subsets
from ldm_jax.evaluation.manifold import Overlap, precision_recall
from ldm_jax.evaluation.segmentation import confusion_matrix, mean_iou, pixel_accuracy
from ldm_jax.evaluation.spectrum import power_spectrum
from ldm_jax.evaluation.ssim import ssim

__all__ = [
    "Moments",
    "Overlap",
    "confusion_matrix",
    "frechet_distance",
    "frechet_from_moments",
    "inception_score",
    "kernel_distance",
    "kernel_distance_of_subsets",
    "mean_iou",
    "merge",
    "moments",
    "moments_of",
    "pixel_accuracy",
    "power_spectrum",
    "precision_recall",
    "ssim",
]
