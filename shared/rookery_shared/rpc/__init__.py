"""The gRPC server that every service runs: health, reflection, errors and drain, the same everywhere."""
