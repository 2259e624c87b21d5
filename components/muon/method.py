"""The two forms of Newton-Schulz: which one is taken, and how many operations it needs."""

from typing import Literal

Mode = Literal["parallel", "distributed", "exact"]
"""Of Parallel Muon (titan_motif.components.muon.optimizer)."""
Method = Literal["auto", "direct", "gram"]
"""On the matrix, or on its Gram matrix (titan_motif.components.muon.newton_schulz); 'auto' takes
the faster one for a shape (choose_method)."""
GRAM_RESTARTS: tuple[int, ...] = (2,)
"""Steps, counted from 0, before which the Gram form begins anew."""
GRAM_TILE, GRAM_DEPTH, GRAM_TILES = 128, 64, 528
"""What fast symmetric products on a GPU need: both dimensions in whole tiles of a product, and so
many of its tiles below the diagonal: four for each of an H200's cores, as one 4096 x 4096 matrix or
four of 2048 x 2048 have. Milliseconds of a batch on one H200, bfloat16 in and out, plain direct
form / Gram form: 5 of 5120 x 4096 18.7 / 11.5, 5 of 4096 x 8192 26.0 / 14.6, 10 of 16384 x 4096
99.8 / 43.7, 5 of 4096 x 16384 47.5 / 20.7, 10 of 2048 x 4096 7.15 / 4.02. One of 2048 x 4096 has a
quarter of the tiles, and takes the plain form."""


def has_fast_products(rows: int, columns: int, batch: int = 1) -> bool:
    """Return whether a batch's symmetric products fill a GPU and its tiles."""
    m, n = sorted((rows, columns))
    tiles = m // GRAM_TILE
    return m % GRAM_TILE == n % GRAM_DEPTH == 0 and batch * tiles * (tiles + 1) // 2 >= GRAM_TILES


def choose_method(
    rows: int, columns: int, batch: int = 1, is_gpu: bool = True
) -> Literal["direct", "gram"]:
    """Return what method 'auto' of Newton-Schulz takes for a batch of matrices of one shape.

    On a GPU the Gram form where it was measured to be faster. On a CPU the direct form: bfloat16
    products have instructions of their own there and float16's, which the Gram form needs, crawl
    (four matrices of 160 x 448 on one core with AVX-512 BF16: 9.9 ms and 168 ms).
    """
    return "gram" if is_gpu and has_fast_products(rows, columns, batch) else "direct"


def method_of(mode: Mode, method: Method) -> Method:
    """Return the form of Newton-Schulz that a mode uses where 'auto' leaves it open."""
    return "direct" if mode == "exact" and method == "auto" else method


def newton_schulz_flops(
    rows: int,
    columns: int,
    num_steps: int,
    method: Method,
    restarts: tuple[int, ...] = GRAM_RESTARTS,
    is_symmetric: bool = True,
) -> int:
    """Return the floating-point operations that orthogonalising a matrix takes.

    Args:
        method:       'auto' as on a GPU, for a matrix among many of its shape
        restarts:     of the Gram form, as `orthogonalize` takes them
        is_symmetric: whether of a symmetric product only half is computed
    """
    m, n = sorted((rows, columns))
    if method == "auto":
        method = choose_method(m, n, batch=GRAM_TILES)
    symmetric, full = (1, 2) if is_symmetric else (2, 2)
    if method == "direct":  # X X^T, (X X^T)^2, and p X
        return num_steps * (symmetric * m * m * n + symmetric * m**3 + full * m * m * n)
    starts = {0, *(step for step in restarts if 0 < step < num_steps)}
    num_squares = num_steps
    num_products_onto_q = num_steps - len(starts)
    num_updates_of_r = num_steps - len(starts)  # R <- p R p, but not where R is formed anew
    small = num_squares + num_products_onto_q + 2 * num_updates_of_r
    return len(starts) * (symmetric + full) * m * m * n + small * symmetric * m**3
