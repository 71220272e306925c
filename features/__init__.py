"""What the model sees: the fold, rows, store, join, archive."""
