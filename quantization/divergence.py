"""How far class probabilities are from others: what quantization did, without any label."""

import numpy as np
import numpy.typing as npt

from quantization.quantizer import Float32Array

FloatArray = npt.NDArray[np.float64]


def divergences(reference: Float32Array, found: Float32Array) -> FloatArray:
    """Return the Kullback-Leibler divergence of each image's class probabilities, (N,), in nats.

    Args:
        reference: logits (N, classes); further axes count as classes. Probabilities, as networks
            that end in a softmax give, are taken for logits: the order of policies is nearly that
            of the divergence, its size is not.
        found: likewise, of what stands in for the reference.
    """
    p, q = (log_softmax(logits.reshape(len(logits), -1)) for logits in (reference, found))
    return np.asarray((np.exp(p) * (p - q)).sum(1))


def log_softmax(logits: Float32Array) -> FloatArray:
    """Return log-probabilities (N, classes) in float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
