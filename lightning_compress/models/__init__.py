"""Architectures, one file each, as plain nn.Module."""
