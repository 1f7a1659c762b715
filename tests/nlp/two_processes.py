"""Started as two processes by test_language_processes.py: a recipe's module and its arguments."""

import importlib
import sys

sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
