"""Data sets as resident batches."""
