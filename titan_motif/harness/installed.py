"""Whether lm-evaluation-harness, an optional package, is there."""


def require_harness() -> None:
    """Raise ValueError, one line, unless it is installed, whole and new enough."""
    try:
        import titan_motif.harness.package  # noqa: F401
    except ImportError as error:
        if not (error.name or "").startswith(("titan_motif", "torch")):
            raise ValueError(
                f"lm-evaluation-harness is not installed, not whole or too old ({error}); "
                "pip install -e '.[eval]' brings it"
            ) from None
        raise
