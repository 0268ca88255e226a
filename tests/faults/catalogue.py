"""All fault tests, in the order of the table."""

from tests.faults import (
    crash_points,
    disk,
    kills,
    ranks,
    server,
    server_connections,
    server_faults,
    server_process,
    signals,
)
from tests.faults.campaign import FaultTest

TESTS: tuple[FaultTest, ...] = (
    *kills.TESTS,
    *crash_points.TESTS,
    *disk.TESTS,
    *signals.TESTS,
    *ranks.TESTS,
    *server.TESTS,
    *server_connections.TESTS,
    *server_faults.TESTS,
    *server_process.TESTS,
)
