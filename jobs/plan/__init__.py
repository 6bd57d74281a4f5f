"""What a launch will do and what it costs. Pure."""
