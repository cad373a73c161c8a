"""Layers in a row of smaller ones, with the values that come nearest."""
