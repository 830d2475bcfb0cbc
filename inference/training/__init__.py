"""The recipe of the project's weights: run by whoever trains, never imported by the service."""
