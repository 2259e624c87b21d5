"""mkdocs hook: the pages of docs/experiments stand in the navigation, as far as there are some."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Add a part for the experiments, before the last one."""
    root = Path(config.docs_dir)
    pages = sorted(
        (page.relative_to(root).as_posix() for page in root.glob("experiments/**/*.md")),
        key=lambda name: (not name.endswith("index.md"), name),
    )
    if pages:
        config.nav.insert(-1, {"Experiments": pages})
    return config
