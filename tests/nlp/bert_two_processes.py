"""Started as two processes by test_bert_processes.py: the arguments of nlp/pretrain_bert.py."""

import sys

from nlp.pretrain_bert import main

sys.exit(main(sys.argv[1:]))
