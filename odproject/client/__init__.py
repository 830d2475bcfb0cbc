"""A command-line client of `/api/v1/`. It imports nothing of the service."""
