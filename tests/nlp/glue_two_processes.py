"""Started as two processes by test_glue_processes.py: the arguments of nlp/finetune_glue.py."""

import sys

from nlp.finetune_glue import main

sys.exit(main(sys.argv[1:]))
