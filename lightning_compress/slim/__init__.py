"""Lightweight substitutes of convolutions, fitted to what they stand for."""
