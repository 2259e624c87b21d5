"""Which algorithm updates which parameter: by rule, by patterns, and never silently."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

Algorithm = Literal["muon", "adamw"]

BLOCKS = "layers.*"
"""Names of the parameters inside blocks."""


def route(
    shapes: Mapping[str, Sequence[int]],
    muon_patterns: Sequence[str] = (),
    adamw_patterns: Sequence[str] = (),
    blocks: str = BLOCKS,
) -> dict[str, Algorithm]:
    """Return the algorithm of every parameter, in the order given.

    Matrices inside blocks go to Muon; embeddings, the output projection, norms and scalars to
    AdamW. A pattern ("*.k_proj.weight") overrides the rule.

    Raises: ValueError for a pattern that matches nothing, for a parameter that both lists claim,
            and for a Muon parameter that is no matrix
    """
    claimed: dict[str, tuple[Algorithm, str]] = {}
    for algorithm, patterns in (("muon", muon_patterns), ("adamw", adamw_patterns)):
        for pattern in patterns:
            matched = [name for name in shapes if fnmatchcase(name, pattern)]
            if not matched:
                raise ValueError(f"{algorithm} pattern {pattern!r} matches no parameter")
            for name in matched:
                other = claimed.setdefault(name, (algorithm, pattern))
                if other[0] != algorithm:
                    raise ValueError(
                        f"{name} is claimed by the {other[0]} pattern {other[1]!r} and by the "
                        f"{algorithm} pattern {pattern!r}"
                    )
                if algorithm == "muon" and len(shapes[name]) != 2:
                    raise ValueError(
                        f"muon pattern {pattern!r} matches {name} of shape {tuple(shapes[name])}; "
                        "a matrix is needed"
                    )

    def by_rule(name: str) -> Algorithm:
        is_matrix_of_a_block = len(shapes[name]) == 2 and fnmatchcase(name, blocks)
        return "muon" if is_matrix_of_a_block else "adamw"

    return {name: claimed[name][0] if name in claimed else by_rule(name) for name in shapes}


def routing_table(
    shapes: Mapping[str, Sequence[int]],
    routes: Mapping[str, Algorithm],
    learning_rates: Mapping[Algorithm, float],
) -> list[str]:
    """Return lines for a person: algorithm, learning rate, name, shape; layers are counted."""
    counts: dict[tuple[Algorithm, str, tuple[int, ...]], int] = {}
    for name, algorithm in routes.items():
        pattern = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        key = (algorithm, pattern, tuple(shapes[name]))
        counts[key] = counts.get(key, 0) + 1
    width = max((len(pattern) for _, pattern, _ in counts), default=0)
    return [
        f"{algorithm:<5}  lr {learning_rates[algorithm]:.3g}  {pattern:<{width}}  "
        f"{' x '.join(map(str, shape))}  ({count})"
        for (algorithm, pattern, shape), count in sorted(
            counts.items(), key=lambda item: item[0][0] != "muon"
        )
    ]
