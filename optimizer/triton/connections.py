"""Clients of the Triton servers, all of which ignore the proxies of the environment.

A server that this program started, or that a space file names by host and port, is not behind
http_proxy and the like.
"""

from __future__ import annotations

import os
import urllib.request
from typing import TYPE_CHECKING

import grpc
import tritonclient.grpc as triton_grpc

if TYPE_CHECKING:
    import aiohttp

_PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

_LOAD_OPTIONS = (
    *_CHANNEL_OPTIONS,
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 100),
    # Every level has its own connection and does not inherit the backoff of the last one.
    ("grpc.use_local_subchannel_pool", 1),
)


def triton_client(address: str) -> triton_grpc.InferenceServerClient:
    """Return Triton's own gRPC client of the server at host:port."""
    return triton_grpc.InferenceServerClient(address, channel_args=list(_CHANNEL_OPTIONS))


def load_channel(address: str) -> grpc.Channel:
    """Return a gRPC channel to host:port, with a connection that no other channel shares."""
    return grpc.insecure_channel(address, options=_LOAD_OPTIONS)


def http_session() -> aiohttp.ClientSession:
    """Return an HTTP session without a limit on connections and time."""
    # Importing it takes a fifth of a second, and most load is sent by gRPC.
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=False,
    )


def fetch(url: str, timeout_seconds: float) -> bytes:
    """Return the body of an HTTP GET. Raises OSError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout_seconds) as answer:
        content: bytes = answer.read()
    return content


def environment_without_proxies() -> dict[str, str]:
    """Return this process's environment without proxies, for a client in its own process."""
    return {k: v for k, v in os.environ.items() if k.lower() not in _PROXY_VARIABLES}
