"""Language: BERT pre-training and GLUE, Transformer-XL, LSTM."""
