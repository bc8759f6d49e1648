"""What pictures are worth: measures over arrays and over features of them.

Statistics of features are float64 and numpy's, whatever device the features came from; measures of pairs of pictures are
jax functions that may be compiled into a validation step.
"""

from etils import epy

# When first used: `python -m ldm_jax.evaluation` reads its flags before jax is there.
with epy.lazy_api_imports(globals()):
    from ldm_jax.evaluation.bits import discretized_laplace
    from ldm_jax.evaluation.copies import Memorisation, memorisation, nearest
    from ldm_jax.evaluation.features import FeatureSet, feature_set, join, load_features
    from ldm_jax.evaluation.frechet import (
        Moments,
        frechet_distance,
        frechet_from_moments,
        frechet_of_gaussians,
        frechet_to,
        merge,
        moments,
        moments_of,
    )
    from ldm_jax.evaluation.intervals import Interval, bootstrap, frechet_at_infinity
    from ldm_jax.evaluation.kernel import kernel_distance, kernel_distance_error, kernel_distance_of_subsets
    from ldm_jax.evaluation.manifold import Overlap, precision_recall
    from ldm_jax.evaluation.pictures import as_uint8, odd_in, uneven_classes
    from ldm_jax.evaluation.score import inception_score
    from ldm_jax.evaluation.segmentation import confusion_matrix, mean_iou, pixel_accuracy
    from ldm_jax.evaluation.similarity import ms_ssim, ssim
    from ldm_jax.evaluation.spectrum import power_spectrum

__all__ = [
    "FeatureSet", "Interval", "Memorisation", "Moments", "Overlap", "as_uint8", "bootstrap", "confusion_matrix",
    "discretized_laplace", "feature_set", "frechet_at_infinity", "frechet_distance", "frechet_from_moments",
    "frechet_of_gaussians", "frechet_to", "inception_score", "join", "kernel_distance", "kernel_distance_error",
    "kernel_distance_of_subsets", "load_features", "mean_iou", "memorisation", "merge", "moments", "moments_of",
    "ms_ssim", "nearest", "odd_in", "pixel_accuracy", "power_spectrum", "precision_recall", "ssim", "uneven_classes",
]  # fmt: skip
