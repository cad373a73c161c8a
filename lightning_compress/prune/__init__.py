"""Removing weights and channels."""
