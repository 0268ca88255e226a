"""`python -m hmoe.data.corpus_sources DIR` writes expected.json anew, of a corpus that somebody has looked at."""

import json
import sys
from pathlib import Path

from hmoe.data.corpus_sources.manifest import make_expected, read_corpus_manifest
from hmoe.storage import write_atomic


def write_expected(folder: Path) -> None:
    """Write what the sources of a corpus gave as what they should give from now on."""
    manifest = read_corpus_manifest(folder)
    if manifest is None or not manifest.is_complete:
        sys.exit(f"{folder}: no complete corpus")
    content = json.dumps(make_expected(manifest), indent=1) + "\n"
    write_atomic(Path(__file__).with_name("expected.json"), content.encode())


if __name__ == "__main__":
    write_expected(Path(sys.argv[1]))
