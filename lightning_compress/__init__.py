"""Trusted Pareto fronts of compressed networks: accuracy, bytes on disk, measured latency."""
