"""`python -m hmoe` and the `hmoe` command."""

import io
import sys


def main() -> None:
    """Run the command line; a training run listens for signals before anything slow is imported."""
    if sys.argv[1:2] == ["train"]:
        from hmoe.train.stop import STOP  # noqa: PLC0415

        STOP.install()
    from hmoe.cli import run  # noqa: PLC0415

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows ?
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
