"""The protocol of a compression method and what runs a list of them."""
