"""One configuration in, one Result out."""
