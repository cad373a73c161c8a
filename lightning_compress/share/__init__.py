"""Weight sharing: many weights take few values, each learned."""
