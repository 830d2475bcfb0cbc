"""What the server adds to a request's environment."""

BEGUN_AT = "odproject.begun_at"
"""When the head was there, in seconds since the epoch; the body may have taken minutes since."""
