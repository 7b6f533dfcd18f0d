"""What a finished run is used for: predict, evaluate, export."""
