"""Where runs can be started: this machine, Ray."""
