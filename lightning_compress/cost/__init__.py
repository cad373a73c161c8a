"""Parameters, MACs and BOPs as pure functions."""
