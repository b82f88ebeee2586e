"""Packaging of the edge gateway: what it needs, and why each dependency is there."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

CORE = [
    # The HTTP server and client; 6.6.1 has the fixes for body parsing and header limits. Apache-2.0, pulls in nothing.
    "tornado>=6.6.1,<7",
    # The head of HTTP/1 requests, read strictly by llhttp (Node's parser): `server.http: fast`. MIT, pulls in nothing.
    "httptools>=0.7,<1",
    # Event schema and option schemas, readable by plugin authors. BSD, pulls in nothing.
    "voluptuous>=0.16,<0.17",
    # OpenAPI documents out of voluptuous schemas; kept by the Home Assistant project. Apache-2.0, voluptuous only.
    "voluptuous-openapi>=0.4,<0.5",
    # Hook specifications and plugin registration, from the pytest project. MIT, pulls in nothing.
    "pluggy>=1.7,<2",
    # Metrics exposition (text and OpenMetrics), the official client. Apache-2.0, pulls in nothing.
    "prometheus-client>=0.26,<1",
    # YAML with line marks and a C loader. MIT, pulls in nothing.
    "PyYAML>=6.0.2,<7",
    # Strict, fast JSON: refuses NaN, lone surrogates and invalid UTF-8. Apache-2.0/MIT, pulls in nothing.
    "orjson>=3.11.6,<4",
    # Commands, options and exit codes of `edge`. BSD, pulls in nothing.
    "click>=8.1.8,<9",
    # Tables, progress and colours on a terminal, plain text when piped. MIT, pulls in pygments and markdown-it-py.
    "rich>=13.9,<16",
    # One log call, two renderings (JSON lines, readable). MIT/Apache-2.0, pulls in nothing.
    "structlog>=25.1",
    # Content-Encoding: br, with a bound on what one step may produce (new in 1.2). MIT, pulls in nothing.
    "Brotli>=1.2,<2",
    # Content-Encoding: zstd with bounded steps; the standard library has it from 3.14 on. PSF, pulls in nothing.
    'backports.zstd>=1.0; python_version < "3.14"',
    # The checksum of frames in a twentieth of the standard library's time, which is used where this is missing: 5 % of
    # a batch. Kept by pycompression, on the library that distributions move to. PSF, pulls in nothing.
    'zlib-ng>=1.0,<2; implementation_name == "cpython" and platform_machine in "x86_64 AMD64 aarch64 arm64"',
    # A faster event loop where it exists. MIT/Apache-2.0, pulls in nothing.
    'uvloop>=0.21; sys_platform != "win32" and implementation_name == "cpython"',
]

TEST = [
    # pytest-tornasync (last released 2019) uses hooks that pytest 10 removes.
    "pytest>=9,<10",
    "pytest-tornasync==0.6.0.post2",
    # Random inputs for the parsers, the schema and the spool format.
    "hypothesis>=6.120",
    # The built wheel is installed into a fresh environment by a test.
    "build>=1.2",
]

DEV = [
    *TEST,
    "mypy>=2.0",
    "ruff>=0.14",
    "types-PyYAML",
]

setup(
    name="edge-gateway",
    version="0.1.0",
    description="An event gateway on Tornado: a 2xx means on disk, and nothing acknowledged is lost.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # `plugins/` is imported as edge_plugins: a top-level package called `plugins` collides with everybody's.
    packages=[
        "edge",
        "edge.cli",
        "edge.config",
        "edge.delivery",
        "edge.http",
        "edge.spool",
        "edge_plugins",
        "edge_plugins.enrichers",
        "edge_plugins.filters",
        "edge_plugins.sinks",
        "edge_plugins.support",
    ],
    package_dir={"edge": "edge", "edge_plugins": "plugins"},
    package_data={"edge": ["py.typed", "cli/edge.yaml.template"]},
    install_requires=CORE,
    extras_require={"test": TEST, "dev": DEV},
    entry_points={
        "console_scripts": ["edge = edge.cli:main"],
        "edge.plugins": [
            "received_at = edge_plugins.enrichers.received_at",
            "static_fields = edge_plugins.enrichers.static_fields",
            "client_ip = edge_plugins.enrichers.client_ip",
            "request_headers = edge_plugins.enrichers.request_headers",
            "drop = edge_plugins.filters.drop",
            "sample = edge_plugins.filters.sample",
            "file = edge_plugins.sinks.file",
            "console = edge_plugins.sinks.console",
            "http = edge_plugins.sinks.http",
            "blackhole = edge_plugins.sinks.blackhole",
        ],
    },
)
