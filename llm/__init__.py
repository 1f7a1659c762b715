"""Large language models: pre-training, HumanEval, fine-tuning, RLHF."""
