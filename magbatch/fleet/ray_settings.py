"""Ray's version, and the settings of Ray that magbatch relies on.

Ray reads most of these variables when it is imported, so they are set before that.
"""

import os
from collections.abc import Mapping

VERSION = "2.60.0"  # pinned in pyproject.toml: private names of Ray differ from version to version
REPLICA_PROCESS = "MapWorker"  # start of the process title that Ray Data gives each replica, after `ray::`
# Under `uv run`, Ray would create the uv environment again for every worker.
NO_UV = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
# GPUs of a replica on several GPUs belong to its placement group, not to its actor: Ray must not hide them from it.
GPUS_VISIBLE = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Ray's default of 3 s would kill a driver before its replicas commit. A run gives them 30 s, and Ray takes some to end.
STOP_WAIT_S = 90
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
DRIVER = {
    **NO_UV,
    **GPUS_VISIBLE,
    # Ray Data's own actor arguments make Ray's core print an error for every job (ray issue 53727).
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # A SIGTERM while Ray starts would block for 30 s, until services are drained. There are no services.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


def unset(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that are not set in this process' environment: a user's own settings stay."""
    return {name: value for name, value in variables.items() if name not in os.environ}
