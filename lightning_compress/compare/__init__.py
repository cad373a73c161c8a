"""Runs and studies held side by side: what differs in them, and in what came of them."""
