"""Peer: nginx with lua writes the body to a file, unread, some time later. A ceiling, and no more than that.

Turns into nginx, whose configuration it writes below the directory it is given.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MODULES = Path("/usr/lib/nginx/modules")
CONFIGURATION = """\
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 16384; }}
http {{
    log_format body escape=none "$request_body";
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_body_buffer_size 4m;
    client_max_body_size 8m;
    keepalive_requests 1000000000;
    keepalive_timeout 3600;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        access_log {folder}/events.ndjson body buffer=256k flush=1s;
        location / {{
            content_by_lua_block {{
                ngx.req.read_body()
                local answer = '{{"status":"success"}}'
                ngx.header.content_type = "application/json"
                ngx.header.content_length = #answer
                ngx.print(answer)
            }}
        }}
    }}
}}
"""


def main(port: int, folder: Path) -> None:
    """Become nginx."""
    user = "user root;" if os.geteuid() == 0 else ""  # else its worker could not write where the others can
    path = folder / "nginx.conf"
    path.write_text(CONFIGURATION.format(modules=MODULES, user=user, folder=folder, port=port))
    os.execvp("nginx", ["nginx", "-p", str(folder), "-c", str(path), "-e", "stderr"])  # noqa: S606, S607 - it is the peer, from wherever it was installed


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
