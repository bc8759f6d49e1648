"""The inception score (Salimans et al. 2016): exp E_x KL(p(y | x) || p(y)), by splits as in the original script."""

import numpy as np


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Mean and deviation over `splits` consecutive parts of the pictures' class logits [N, K].

    Pictures in the order of their classes must be mixed before: a part that holds one class alone scores next to 1. The
    original network's logits are those without bias (`InceptionFeatures.logits_unbiased`).
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"logits of shape {logits.shape} in {splits} splits: expected [N, K] and at most N splits")
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    scores = []
    for i in range(splits):
        part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        p = np.exp(part)
        marginal = p.mean(0)
        # a class that no picture has (p = 0 after rounding) adds nothing
        log_marginal = np.log(np.where(marginal > 0, marginal, 1))
        scores.append(np.exp((p * (part - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
