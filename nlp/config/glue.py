"""Configuration of nlp/finetune_glue.py."""
