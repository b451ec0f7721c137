"""Where Daft computes: in this process, or on a Ray cluster. Results do not depend on it, so no profile names it.

``FOVEA_CURATE_RUNNER`` is ``native`` (default) or ``ray``; Ray's own ``RAY_ADDRESS`` says which cluster, without it
one is started on this machine. ``FOVEA_CURATE_WORKERS`` is the number of row groups under way at once (default: the
processors of this machine, on Ray of the cluster).
"""

import os

import daft

from model.data.errors import InputError

RUNNER, WORKERS = "FOVEA_CURATE_RUNNER", "FOVEA_CURATE_WORKERS"


def choose_runner() -> int:
    """Set Daft's runner from the environment, once per process; returns the number of workers.

    Raises:
        InputError: a variable is wrong, Ray is not installed, or this process runs Daft the other way already.
    """
    runner, asked = os.environ.get(RUNNER) or "native", os.environ.get(WORKERS) or "0"
    if runner not in ("native", "ray"):
        raise InputError(f"{RUNNER}: must be native or ray, not {runner!r}")
    if not asked.isdecimal():
        raise InputError(f"{WORKERS}: must be a number, not {asked!r}")
    workers = int(asked) or (_cluster_workers() if runner == "ray" else len(os.sched_getaffinity(0)))
    if runner == "ray":
        _start_ray(workers)
    os.environ["DAFT_RUNNER"] = runner  # read by Daft when it makes its runner, which it does once
    if daft.get_or_create_runner().name != runner:
        raise InputError(f"{RUNNER}: this process has used Daft's other runner before {runner}")
    return workers


def _cluster_workers() -> int:
    _start_ray(0)
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _start_ray(workers: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start one here with so many processors (0: all)."""
    try:
        import ray
    except ImportError as error:
        raise InputError(f"{RUNNER}: ray is asked for and not installed ({error})") from error
    if not ray.is_initialized():
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or None, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **here)
