"""All fault tests, in the order of the table."""

from tests.faults import (
    bad_steps,
    checkpoint_files,
    crash_points,
    data_files,
    disk,
    drift,
    folders,
    hostile_files,
    kills,
    ranks,
    recipes,
    routers,
    server,
    server_connections,
    server_faults,
    server_process,
    signals,
    transfers,
)
from tests.faults.campaign import FaultTest

TESTS: tuple[FaultTest, ...] = (
    *kills.TESTS,
    *transfers.TESTS,
    *crash_points.TESTS,
    *data_files.TESTS,
    *checkpoint_files.TESTS,
    *disk.TESTS,
    *signals.TESTS,
    *ranks.TESTS,
    *bad_steps.TESTS,
    *recipes.TESTS,
    *hostile_files.TESTS,
    *server.TESTS,
    *server_connections.TESTS,
    *server_faults.TESTS,
    *server_process.TESTS,
    *drift.TESTS,
    *routers.TESTS,
    *folders.TESTS,
)
