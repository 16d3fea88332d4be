"""Errors that a client sees: a status, a code for programs and a message for people."""

from starlette.responses import JSONResponse, Response


class ApiError(Exception):
    """A request that is answered by an error.

    Args:
        status: int, the HTTP status.
        code: str, a word that stays the same, such as "bad_cursor".
        message: str, what was expected, what came, and the cure.
    """

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def response(self) -> Response:
        """Returns the JSON response `{"error": {"code": ..., "message": ...}}`."""
        headers = {"Retry-After": "1"} if self.status == 503 else None
        return JSONResponse({"error": {"code": self.code, "message": self.message}}, self.status, headers)
