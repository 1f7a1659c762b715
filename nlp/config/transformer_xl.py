"""Configuration of nlp/train_transformer_xl.py."""
