"""What the server and an application tell each other by a request's environment."""

BEGUN_AT = "odproject.begun_at"
"""When the head was there, in seconds since the epoch; the body may have taken minutes since."""

LATER = "odproject.later"
"""Empty where a view may put the kind of threads that shall call it again, with an empty body.

What it answers then is the answer. So what has turned out to take long leaves the thread to others.
The kind is there then: it is still the same request.
"""

CLIENT_LEFT = "odproject.client_left"
"""An event that is set once nobody waits for the answer any more."""
