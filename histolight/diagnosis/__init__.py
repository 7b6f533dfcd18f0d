"""What `doctor` knows: the machine, the packages and the caches, and what to do about each fault."""
