"""Parts of the first-light script."""
