"""Parts of bench/the-bucket."""
