"""`python launch.py PROGRAM ARGUMENTS...`: become the program, and end when whoever started it ends.

A process of its own, because the supervisor has threads and gRPC channels, and nothing may run in it between fork and
exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execvp(sys.argv[1], sys.argv[1:])
