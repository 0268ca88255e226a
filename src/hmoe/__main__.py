"""`python -m hmoe` and the `hmoe` command."""

import signal
import sys

from hmoe.cli.interrupts import INTERRUPTS, get_interrupted_code
from hmoe.parallel.heartbeat import HEARTBEAT


def main() -> None:
    """Run the command line; signals are listened for before anything slow is imported."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"]:
        from hmoe.train.stop import STOP  # noqa: PLC0415

        STOP.install(HEARTBEAT.has_launcher)
    else:
        INTERRUPTS.install(get_interrupted_code(arguments))
    HEARTBEAT.start()  # not before signals are listened for: the launcher sends them from then on
    from hmoe.cli.streams import prepare_streams  # noqa: PLC0415

    prepare_streams()
    from hmoe.cli.main import run_command_line  # noqa: PLC0415

    code = run_command_line(arguments)
    if INTERRUPTS.came:
        INTERRUPTS.end()
    # The work is done: Python's own end would show tracebacks, or end by a signal after all.
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signal_number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
