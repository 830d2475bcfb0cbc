"""What a websocket gets on a path where there is none."""

from channels.generic.websocket import AsyncWebsocketConsumer

POLICY_VIOLATION = 1008


class RefusedPath(AsyncWebsocketConsumer):
    """Accepts and closes, so that the client sees a code rather than a broken handshake."""

    async def connect(self) -> None:
        """Refuse."""
        await self.accept()
        await self.close(POLICY_VIOLATION)
