"""What stands before every request: whose it is, how large it may be, what the browser may do.

A page of another site must not read results or write files through the browser of the user. So
requests are refused whose Host is a name that is not ours (DNS rebinding), or that come from
another origin.
"""

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN_SITES = ("same-origin", "none")  # values of Sec-Fetch-Site; none: typed, or a bookmark
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses requests of other sites and bodies that are too large; sets headers."""

    def __init__(self, app: ASGIApp, names: Iterable[str], max_bytes: int):
        """Stand before an app.

        Args:
            app: what is guarded.
            names: hosts, in lower case, under which it is reached; addresses always are ours.
            max_bytes: of the body of a request.
        """
        self.app, self.names, self.max_bytes = app, frozenset(names) - {""}, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, taken = Headers(scope=scope), 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_bytes:
                raise self._too_large()
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._check_site(scope, headers)
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > self.max_bytes:
                raise self._too_large()
        except HTTPException as error:
            refusal = JSONResponse({"error": error.detail}, error.status_code)
            await refusal(scope, receive, with_headers)
            return
        await self.app(scope, counted, with_headers)

    def _check_site(self, scope: Scope, headers: Headers) -> None:
        """Refuse what another site asks for.

        Raises:
            HTTPException: it is refused.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            raise HTTPException(
                403,
                f"Host: expected an address or {' or '.join(sorted(self.names))}, got "
                f"{host!r:.100}. Open the address that demo.py printed.",
            )
        # Links from elsewhere may lead to the page; nothing else may come from elsewhere.
        method, mode = scope.get("method", "GET"), headers.get("sec-fetch-mode")
        is_link = method == "GET" and mode == "navigate"
        is_own = headers.get("sec-fetch-site", "none") in OWN_SITES or is_link
        if not is_own or (origin is not None and urlsplit(origin).netloc != host):
            raise HTTPException(403, "Origin: expected this page, got another site.")

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ip_address(name))
        except ValueError:
            return False

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"upload: expected at most {self.max_bytes / 1e6:g} MB, got more. Make the picture "
            "smaller, or start demo.py with a higher --max-mb.",
        )
