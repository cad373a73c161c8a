"""Bytes in, bytes out: exact entropy and n-bit coding."""
