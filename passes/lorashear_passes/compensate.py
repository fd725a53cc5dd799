"""Least squares in place of what was removed.

Where structures that feed a linear map ``y = W h`` go, the columns S that stay are refitted on calibration data:

    W' = (W C[:, S] + λ W_S) (C[S, S] + λI)⁻¹,   C = E[h hᵀ],   or   W E[h_dense hᵀ][:, S] … against the dense model's input

(the closed form of SparseGPT, ZipLM and optimal brain surgeon; the second form is asymmetric calibration, which also mends
what earlier blocks lost).
"""

import torch
from torch import Tensor

from .saliency import DAMP, working_dtype

__all__ = ["compensate"]


def compensate(
    weight: Tensor,
    covariance: Tensor,
    kept: Tensor,
    *,
    cross: Tensor | None = None,
    damp: float = DAMP,
) -> Tensor:
    """``weight`` ``[out, in]`` refitted on the columns ``kept``; the other columns of the result are zero.

    ``covariance`` is ``E[h hᵀ]`` ``[in, in]`` of the input that the map will see. ``cross`` is ``E[h_dense hᵀ]`` ``[in, in]``
    where the wanted output is ``W h_dense`` and not ``W h``. λ = damp · mean diagonal of the kept part; it pulls towards the old
    weights, not to zero, so the fitted objective never rises above the one of dropping the columns.
    """
    dtype = working_dtype(weight)
    work, exact, index = weight.to(dtype), covariance.to(dtype), kept.to(weight.device)
    result = torch.zeros_like(work)
    if len(index):
        inner = exact[index][:, index]
        ridge = max(damp * float(inner.diagonal().mean()), 1e-12)
        wanted = work @ (exact if cross is None else cross.to(dtype))[:, index] + ridge * work[:, index]
        unit = torch.eye(len(index), dtype=dtype, device=work.device)
        while True:
            factor, failed = torch.linalg.cholesky_ex(inner + ridge * unit)
            if not int(failed):
                break
            wanted += 9 * ridge * work[:, index]
            ridge *= 10
        result[:, index] = torch.cholesky_solve(wanted.T, factor).T
    return result.to(weight.dtype)
