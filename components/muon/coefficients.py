"""What Newton-Schulz applies: each step is p(x) = a x + b x^3 + c x^5 on the singular values."""

import functools

import numpy as np

Coefficients = tuple[tuple[float, float, float], ...]
"""(a, b, c) of each step."""

MUON_STEPS = 5
MUON: Coefficients = ((3.4445, -4.7750, 2.0315),) * MUON_STEPS
"""Keller Jordan's, the same at each step (https://kellerjordan.github.io/posts/muon/)."""

MOTIF: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Those of the code released with Motif-2 (https://arxiv.org/abs/2511.07464)."""

POLAR_EXPRESS_STEPS = 5
LEAST_SINGULAR_VALUE = 1e-3
"""Over the Frobenius norm: smaller ones are raised, but not to one, within the steps."""
_CUSHION = 0.02407327424182761
"""Least share of an interval that a polynomial is fitted on: one fitted on a very long interval
makes large singular values oscillate in bfloat16 (the authors' value)."""
_SAFETY = 1.01
"""Singular values may exceed one by rounding; every step but the last is shrunk by so much."""

NAMES = ("muon", "motif", "polar_express")


def named_coefficients(name: str, steps: int | None = None) -> Coefficients:
    """Return the coefficients of a name in NAMES.

    Args:
        steps: number of steps of polar_express (5 if None); the others have their own
    Raises: ValueError for another name, and for steps that the name does not have
    """
    if name == "polar_express":
        steps = POLAR_EXPRESS_STEPS if steps is None else steps
        if steps < 1:
            raise ValueError(f"{steps} steps of polar_express; at least 1 is needed")
        return polar_express(steps)
    fixed = {"muon": MUON, "motif": MOTIF}.get(name)
    if fixed is None:
        raise ValueError(f"coefficients {name!r}; one of {', '.join(NAMES)} is needed")
    if steps not in (None, len(fixed)):
        raise ValueError(f"{steps} steps of {name!r}, which has {len(fixed)}")
    return fixed


@functools.cache
def polar_express(steps: int) -> Coefficients:
    """Compute the best polynomials for singular values from LEAST_SINGULAR_VALUE to 1.

    Each step's polynomial is the odd quintic nearest to 1 (in the largest difference) on the
    interval that the steps before it have left; composed, they are the best of all compositions.
    (The Polar Express, Algorithm 1, https://arxiv.org/abs/2505.16932)

    Departs: as the authors' code does, with a cushion and a safety factor for bfloat16
    """
    low, high = LEAST_SINGULAR_VALUE, 1.0
    found = []
    for step in range(steps):
        a, b, c = _best_quintic(max(low, _CUSHION * high), high)
        # Centred: with a cushion the interval below it is mapped lower than the fit's least value.
        scale = 2 / (_value((a, b, c), low) + _value((a, b, c), high))
        a, b, c = a * scale, b * scale, c * scale
        low, high = _value((a, b, c), low), 2 - _value((a, b, c), low)
        shrink = _SAFETY if step < steps - 1 else 1.0
        found.append((a / shrink, b / shrink**3, c / shrink**5))
    return tuple(found)


def _value(abc: tuple[float, float, float], x: float) -> float:
    a, b, c = abc
    return a * x + b * x**3 + c * x**5


def _best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """Return the odd quintic with the least largest |1 - p| on [low, high], by Remez exchange.

    The error of the best one reaches its extremes, with turning signs, at low, at two inner points
    and at high; the inner points are where its derivative vanishes.
    """
    if 1 - low / high < 5e-6:  # the limit: Newton-Schulz of order five, at one point
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner = np.array([0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high])
    error, last = np.inf, None
    while last is None or abs(error - last) > 1e-15:
        last = error
        points = np.array([low, *inner, high])
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)])
    return float(a), float(b), float(c)
