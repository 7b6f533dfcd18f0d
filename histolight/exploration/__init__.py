"""What `explore` knows: measures of a set of tiles, and its page."""
