"""Compiled loops over cells, row by row, for `celldial.ops.numba_backend`.

A row is read once and stays in the cache until its log-likelihood or gradient is complete; torch would pass over the
whole matrix for each operation. Loops are compiled when they are first called, and cached on disk. The exponential and
the logarithm in the loops over features are written out so that the compiler can vectorize them; their relative error
is below 1e-6. Arguments are arrays and tuples of arrays, and numba infers their types. ``start`` and ``stop`` are the
range of rows, or of columns, that a call computes.

Loops that sum do not write to arrays. If the written memory could overlap the memory that is read, the compiler would
add a second version of the loop with another order of additions, and results would depend on the addresses of arrays.

Axis suffixes: ``c`` cells, ``f`` features, ``h`` hidden units, ``n`` stored entries.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = [
    "bernoulli",
    "gather",
    "log_partition_gradient",
    "negative_binomial",
    "negative_binomial_gradient",
    "poisson",
    "sparse_product",
    "sparse_product_gradient",
]

# Sums may be computed in any fixed order; otherwise loops would not be vectorized.
fast_njit = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
# For functions that depend on how numbers are rounded.
strict_njit = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})

F32, I32 = np.float32, np.int32
ONE, TWO = F32(1), F32(2)
LOG2_E, LN_2 = F32(1.4426950408889634), F32(0.6931471805599453)
# The logarithm of 2 as the sum of a number with few digits, whose multiples are exact, and the remainder.
LN_2_HIGH, LN_2_LOW = F32(0.693359375), F32(-2.12194440e-4)
MIN_EXPONENT = F32(-87)  # its exponential is close to the smallest normal number
# Up to this count, ratios of gamma functions are computed as products with one factor per count.
MAX_PRODUCT_TERMS = 16


@strict_njit
def exp_nonpositive(x):
    """Return the exponential of a number that is at most 0; numbers below -87 are replaced by -87."""
    x = max(x, MIN_EXPONENT)
    power = I32(x * LOG2_E - F32(0.5))
    x = x - F32(power) * LN_2_HIGH - F32(power) * LN_2_LOW
    series = F32(1 / 24) + x * (F32(1 / 120) + x * (F32(1 / 720) + x * F32(1 / 5040)))
    series = ONE + x * (ONE + x * (F32(1 / 2) + x * (F32(1 / 6) + x * series)))
    return series * I32((power + I32(127)) << I32(23)).view(np.float32)


@strict_njit
def log1p_nonnegative(x):
    """Return the logarithm of one plus a number that is at least 0, accurate for small numbers too."""
    bits = F32(ONE + x).view(np.int32)
    # The power of two that leaves a factor between the square roots of 1/2 and 2.
    power = I32(bits - I32(0x3F3504F3)) >> I32(23)
    fraction = I32(bits - (power << I32(23))).view(np.float32) - ONE
    if power == 0:
        fraction = x  # without the rounding of 1 + x
    s = fraction / (TWO + fraction)
    square = s * s
    series = F32(2 / 5) + square * (F32(2 / 7) + square * (F32(2 / 9) + square * F32(2 / 11)))
    return s * (TWO + square * (F32(2 / 3) + square * series)) + F32(power) * LN_2


@fast_njit
def log_binomial(x, theta, log_theta):
    """Return the logarithm of gamma(x + theta) / (gamma(theta) x!)."""
    if x == 1:
        return log_theta
    if x > MAX_PRODUCT_TERMS or x != math.floor(x):
        return math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1)
    numerator = denominator = 1.0
    for k in range(int(x)):
        numerator *= theta + k
        denominator *= k + 1
    return math.log(numerator / denominator)


@fast_njit
def digamma_difference(x, theta):
    """Return digamma(x + theta) - digamma(theta)."""
    if x > MAX_PRODUCT_TERMS or x != math.floor(x):
        return digamma(x + theta) - digamma(theta)
    total = 0.0
    for k in range(int(x)):
        total += 1 / (theta + k)
    return total


@strict_njit
def digamma(x):
    """Return the derivative of the logarithm of the gamma function, to ten digits."""
    shift = 0.0
    while x < 8:
        shift += 1 / x
        x += 1
    s = 1 / (x * x)
    return math.log(x) - 0.5 / x - s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132)))) - shift


@strict_njit
def row_max(x_f):
    """Return the maximum of a row, or NaN."""
    # The maximum of integers is vectorized, that of floats is not. These integers have the same order as the floats.
    top = I32(-0x80000000)
    for f in range(len(x_f)):
        bits = F32(x_f[f]).view(np.int32)
        top = max(top, bits ^ ((bits >> I32(31)) & I32(0x7FFFFFFF)))
    return I32(top ^ ((top >> I32(31)) & I32(0x7FFFFFFF))).view(np.float32)


@fast_njit
def exp_shifted(logit_f, out_f):
    """Write the exponentials of one row minus its maximum; return the maximum and the sum of the exponentials."""
    maximum = row_max(logit_f)
    for f in range(len(logit_f)):
        out_f[f] = exp_nonpositive(logit_f[f] - maximum)
    total = F32(0)
    for f in range(len(logit_f)):
        total += out_f[f]
    return maximum, total


@fast_njit
def negative_binomial(start, stop, logits_cf, log_theta_f, library_c, counts, outputs):
    """Write per row the log-likelihood, the maximum of the logits, and library size over the sum of exponentials."""
    (indptr_c, column_n, x_n), (log_p_c, max_c, scale_c) = counts, outputs
    n_features = logits_cf.shape[1]
    theta_f, per_theta_f = np.exp(log_theta_f), np.exp(-log_theta_f)
    mu_f = np.empty(n_features, np.float32)
    for c in range(start, stop):
        maximum, total = exp_shifted(logits_cf[c], mu_f)
        scale = library_c[c] / total
        log_p = F32(0)
        for f in range(n_features):
            log_p -= theta_f[f] * log1p_nonnegative(mu_f[f] * scale * per_theta_f[f])
        log_scale = F32(math.log(scale)) - maximum
        log_p_stored = 0.0
        for n in range(indptr_c[c], indptr_c[c + 1]):
            f, x = column_n[n], x_n[n]
            ratio = mu_f[f] * scale * per_theta_f[f]
            if ratio > 1:  # log(r / (1 + r)), which is near 0
                log_share = -log1p_nonnegative(ONE / ratio)
            else:
                log_share = logits_cf[c, f] + log_scale - log_theta_f[f] - log1p_nonnegative(ratio)
            log_p_stored += log_binomial(x, theta_f[f], log_theta_f[f]) + x * log_share
        log_p_c[c], max_c[c], scale_c[c] = log_p + log_p_stored, maximum, scale


@fast_njit
def negative_binomial_gradient(start, stop, grad_log_theta_f, inputs, counts, saved, grad_cf):
    """Write the gradient with respect to the logits of each row; add the gradient with respect to log theta."""
    logits_cf, log_theta_f, library_c = inputs
    (indptr_c, column_n, x_n), (max_c, scale_c, grad_c) = counts, saved
    n_features = logits_cf.shape[1]
    theta_f, per_theta_f = np.exp(log_theta_f), np.exp(-log_theta_f)
    mu_f, theta_share_f = np.empty(n_features, np.float32), np.empty(n_features, np.float32)
    for c in range(start, stop):
        maximum, scale, weight = max_c[c], scale_c[c], grad_c[c]
        total = F32(0)
        for f in range(n_features):
            mu = exp_nonpositive(logits_cf[c, f] - maximum) * scale
            theta_share = ONE / (ONE + mu * per_theta_f[f])
            grad_log_theta_f[f] += weight * (mu * theta_share - theta_f[f] * log1p_nonnegative(mu * per_theta_f[f]))
            mu_f[f], theta_share_f[f] = mu, theta_share
        for f in range(n_features):
            total -= mu_f[f] * theta_share_f[f]
        for n in range(indptr_c[c], indptr_c[c + 1]):
            total += x_n[n] * theta_share_f[column_n[n]]
        shift = total / library_c[c]
        for f in range(n_features):
            grad_cf[c, f] = -weight * mu_f[f] * (theta_share_f[f] + shift)
        for n in range(indptr_c[c], indptr_c[c + 1]):
            f, x = column_n[n], x_n[n]
            gradient = x * theta_share_f[f]
            grad_cf[c, f] += weight * gradient
            grad_log_theta_f[f] += weight * F32(theta_f[f] * digamma_difference(x, theta_f[f]) - gradient)


@fast_njit
def poisson(start, stop, logits_cf, library_c, counts, outputs):
    """Write per row the log-likelihood, the maximum of the logits, and the total count over the sum of exponentials."""
    (indptr_c, column_n, x_n), (log_p_c, max_c, scale_c) = counts, outputs
    share_f = np.empty(logits_cf.shape[1], np.float32)
    for c in range(start, stop):
        maximum, total = exp_shifted(logits_cf[c], share_f)
        log_scale = F32(math.log(library_c[c] / total)) - maximum
        log_p, total_count = -library_c[c], F32(0)
        for n in range(indptr_c[c], indptr_c[c + 1]):
            x = x_n[n]
            total_count += x
            log_p += x * (logits_cf[c, column_n[n]] + log_scale) - (0.0 if x == 1 else math.lgamma(x + 1))
        log_p_c[c], max_c[c], scale_c[c] = log_p, maximum, total_count / total


@fast_njit
def bernoulli(start, stop, logits_cf, log_exposure_c, gradient, outputs):
    """Write per row the log-likelihood, and its gradients with respect to the log rates of successes and log exposure.

    Also write the maximum of the logits, and the sum of the gradients of successes over the sum of exponentials.
    """
    indptr_c, column_n, gradient_n = gradient
    log_p_c, max_c, scale_c, grad_log_exposure_c = outputs
    share_f = np.empty(logits_cf.shape[1], np.float32)
    for c in range(start, stop):
        maximum, total = exp_shifted(logits_cf[c], share_f)
        exposure = math.exp(log_exposure_c[c])
        log_scale = log_exposure_c[c] - F32(math.log(total)) - maximum
        log_p, gradient_sum = -exposure, 0.0
        for n in range(indptr_c[c], indptr_c[c + 1]):
            log_rate = logits_cf[c, column_n[n]] + log_scale
            rate = exposure / total * share_f[column_n[n]]
            half = 0.5 * rate
            square = rate * rate
            if rate < 0.5:  # log(e^r - 1) = log r + r / 2 + log(sinh(r / 2) / (r / 2)), by its series
                log_p += log_rate + half + square * (1 / 24 - square * (1 / 2880 - square / 181440))
                gradient = 1 + half + square * (1 / 12 - square * (1 / 720 - square / 30240))
            else:
                success_probability = -math.expm1(-rate)
                log_p += rate + math.log(success_probability)
                gradient = rate / success_probability
            gradient_n[n] = gradient
            gradient_sum += gradient
        log_p_c[c], max_c[c], scale_c[c] = log_p, maximum, gradient_sum / total
        grad_log_exposure_c[c] = gradient_sum - exposure


@fast_njit
def log_partition_gradient(start, stop, logits_cf, gradient, saved, grad_cf):
    """Write the gradient with respect to the logits of each row: stored entries minus their sum times the softmax."""
    (indptr_c, column_n, gradient_n), (max_c, scale_c, grad_c) = gradient, saved
    for c in range(start, stop):
        maximum, weight = max_c[c], grad_c[c]
        scale = -weight * scale_c[c]
        for f in range(logits_cf.shape[1]):
            grad_cf[c, f] = scale * exp_nonpositive(logits_cf[c, f] - maximum)
        for n in range(indptr_c[c], indptr_c[c + 1]):
            grad_cf[c, column_n[n]] += weight * gradient_n[n]


@fast_njit
def gather(start, stop, rows, index_c, new_rows):
    """Copy the rows `index_c` to `new_rows`, whose row pointers are already set."""
    (indptr_c, column_n, value_n), (new_indptr_c, new_column_n, new_value_n) = rows, new_rows
    for c in range(start, stop):
        old = indptr_c[index_c[c]]
        for n in range(new_indptr_c[c], new_indptr_c[c + 1]):
            new_column_n[n] = column_n[old]
            new_value_n[n] = value_n[old]
            old += 1


@fast_njit
def sparse_product(start, stop, rows, weight_fh, out_ch):
    """Write the product of sparse rows with a matrix."""
    indptr_c, column_n, value_n = rows
    for c in range(start, stop):
        sum_h = out_ch[c]
        sum_h[:] = 0
        for n in range(indptr_c[c], indptr_c[c + 1]):
            value, weight_h = value_n[n], weight_fh[column_n[n]]
            for h in range(len(sum_h)):
                sum_h[h] += value * weight_h[h]


@fast_njit
def sparse_product_gradient(start, stop, rows, grad_ch, out_fh):
    """Add the gradient with respect to some columns of the matrix to `out_fh`, which is zero at the start."""
    indptr_c, column_n, value_n = rows
    for c in range(len(grad_ch)):
        grad_h = grad_ch[c, start:stop]
        for n in range(indptr_c[c], indptr_c[c + 1]):
            value, sum_h = value_n[n], out_fh[column_n[n], start:stop]
            for h in range(len(grad_h)):
                sum_h[h] += value * grad_h[h]
