"""What `compare` knows: runs as rows, their ranking, and its page."""
