"""Configuration of nlp/train_lstm.py."""
