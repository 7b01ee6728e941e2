"""Start a program that ends with its parent: SHIM PARENT_PID CORES -- PROGRAM [ARGUMENT ...].

This script runs with `python -I -S` and imports only the standard library. It requests SIGTERM at
the parent's death (prctl(2), PR_SET_PDEATHSIG; kept across exec), sets the affinity to CORES
(comma-separated), and executes the program. A `preexec_fn` would do the same, but is unsafe in a
process with threads, which gRPC starts.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, sig: signal.Signals) -> None:
    """Have the kernel send `sig` to this process when its parent ends, or has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), sig)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    parent, cores = sys.argv[1:separator]
    die_with_parent(int(parent), signal.SIGTERM)
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execv(sys.argv[separator + 1], sys.argv[separator + 1 :])  # noqa: S606 - the purpose of this script
