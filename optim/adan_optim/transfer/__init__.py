"""Settings of one optimizer from those of another, by the noise of the gradient; see transfer.py."""
