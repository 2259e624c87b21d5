"""`titan-motif data prepare`: documents to the tokens that a run reads."""

import json
from dataclasses import dataclass
from pathlib import Path

from titan_motif.components.preparation.prepare import PrepareOptions, prepare_source


@dataclass(frozen=True)
class Options(PrepareOptions):
    """Tokenise documents, hold a part of them out, shuffle the rest once.

    A preparation that was stopped goes on when it is started again.

    Example: titan-motif data prepare --inputs web/ --output data/web --tokenizer data/tokenizer
    """

    json: Path | None = None
    """Write the manifest to this file too."""


def main(options: Options) -> None:
    """Prepare a source, and print what it holds."""
    manifest = prepare_source(options)
    if options.json is not None:
        options.json.write_text(json.dumps(manifest, indent=1) + "\n")
