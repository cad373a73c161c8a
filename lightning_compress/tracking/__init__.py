"""Where a run came from and where it is logged."""
