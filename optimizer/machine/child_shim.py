"""Start a program that ends with its parent: SHIM PARENT_PID CORES -- PROGRAM [ARGUMENT ...].

Run as a script with `python -I -S`, so it imports the standard library only. It asks the kernel
for SIGTERM at the parent's death (prctl(2), PR_SET_PDEATHSIG; kept across exec), keeps the program
to CORES (comma-separated), and becomes the program. A `preexec_fn` would do the same but is unsafe
in a process with threads, which gRPC starts.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, sig: signal.Signals) -> None:
    """Have the kernel send `sig` to this process when its parent ends; at once if it has ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), sig)


if __name__ == "__main__":
    separator = sys.argv.index("--")
    parent, cores = sys.argv[1:separator]
    die_with_parent(int(parent), signal.SIGTERM)
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execv(sys.argv[separator + 1], sys.argv[separator + 1 :])  # noqa: S606 - that is its job
