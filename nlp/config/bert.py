"""Configuration of nlp/pretrain_bert.py."""
