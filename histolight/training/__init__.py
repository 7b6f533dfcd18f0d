"""One training from prepared data to a finished run directory."""
