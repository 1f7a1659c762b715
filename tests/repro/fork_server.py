"""Runs vision/train.py again and again in fresh processes that need not import everything again.

Reads one JSON list of arguments per line; for each, forks a process that runs the command, and prints its
process id and, when it has ended, its exit status (negative: the signal that killed it). Only imports happen
before the fork, so that a child starts as clean as a new process.
"""

import json
import os
import sys

import sklearn.datasets
import sklearn.model_selection  # noqa: F401

from vision.train import main

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)  # stdout belongs to the protocol
        status = 1
        try:
            status = main(json.loads(line))
        finally:
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
