"""What pages share, and the page of a run."""
