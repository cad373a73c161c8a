"""Published tables beside what runs of ours give."""
