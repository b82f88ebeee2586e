"""The OpenAPI 3.1 document: generated from the live event schema and from the table of answers."""

from __future__ import annotations

from typing import Any

import edge
from edge.http.answers import TABLE, Refusal
from edge.validation import EventValidator, to_openapi

DETAIL = {
    "type": "object",
    "required": ["field", "message", "code"],
    "properties": {
        "field": {"type": "string", "description": "Dotted path, for example experiments[2]."},
        "message": {"type": "string", "description": "Reads after the field's name. Never holds a value."},
        "code": {"type": "string"},
    },
}

BATCH_RESULT = {
    "type": "object",
    "required": ["index", "eventId", "status"],
    "properties": {
        "index": {"type": "integer"},
        "eventId": {"type": ["string", "null"]},
        "status": {"enum": ["accepted", "invalid", "duplicate", "rejected"]},
        "retryable": {"type": "boolean"},
        "details": {"type": "array", "items": {"$ref": "#/components/schemas/Detail"}},
    },
}

EVENT_ANSWER = {
    "type": "object",
    "required": ["status", "eventId"],
    "properties": {
        "status": {"const": "success"},
        "eventId": {"type": "string"},
        "duplicate": {"type": "boolean", "description": "The event was stored before."},
    },
}

BATCH_ANSWER = {
    "type": "object",
    "required": ["status", "accepted", "rejected", "results"],
    "properties": {
        "status": {"enum": ["success", "partial", "error"]},
        "accepted": {"type": "integer"},
        "rejected": {"type": "integer"},
        "results": {"type": "array", "items": {"$ref": "#/components/schemas/BatchResult"}},
    },
}

SECURITY: list[dict[str, list[str]]] = [{"apiKey": []}, {"bearer": []}, {"basic": []}, {"browserKey": []}]


def document(validator: EventValidator) -> dict[str, Any]:
    """Return the document of a gateway that validates with this validator."""
    event = {"$ref": "#/components/schemas/Event"}
    events = {"type": "array", "items": event, "minItems": 1}
    envelope = {
        "type": "object",
        "required": ["events"],
        "properties": {"events": events, "sent_at": {"type": "string", "format": "date-time"}},
        "additionalProperties": False,
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edge gateway",
            "version": edge.__version__,
            "description": "A 2xx means: every accepted event of the request is on this machine's disk.",
        },
        "paths": {
            "/ingest": {
                "post": _operation("Store one event.", {"application/json": event, "text/plain": event}, "EventAnswer"),
            },
            "/ingest/batch": {
                "post": {
                    **_operation(
                        "Store many events. Each is judged by itself; the good ones are stored together.",
                        {
                            "application/json": {"oneOf": [events, envelope]},
                            "text/plain": {"oneOf": [events, envelope]},
                            "application/x-ndjson": {"type": "string", "description": "One event a line."},
                        },
                        "BatchAnswer",
                    ),
                    "parameters": [
                        {
                            "name": "verbose",
                            "in": "query",
                            "schema": {"enum": ["1"]},
                            "description": "List every event in `results`, accepted ones too.",
                        }
                    ],
                }
            },
            "/healthz": {
                "get": {
                    "summary": "Tell whether this gateway takes events.",
                    "security": [],
                    "responses": {
                        "200": _json_response("It does.", {"$ref": "#/components/schemas/Health"}),
                        "503": _json_response("It is draining.", {"$ref": "#/components/schemas/Health"}),
                    },
                }
            },
            "/openapi.json": {
                "get": {
                    "summary": "This document.",
                    "security": [],
                    "responses": {"200": _json_response("The document.", {"type": "object"})},
                }
            },
        },
        "security": SECURITY,
        "components": {
            "schemas": {
                "Event": to_openapi(validator.schema),
                "Detail": DETAIL,
                "BatchResult": BATCH_RESULT,
                "EventAnswer": EVENT_ANSWER,
                "BatchAnswer": BATCH_ANSWER,
                "Health": {
                    "type": "object",
                    "required": ["status"],
                    "properties": {"status": {"enum": ["pass", "fail"]}},
                },
                "Refusal": {
                    "type": "object",
                    "required": ["error", "details"],
                    "properties": {
                        "error": {"enum": sorted({row.error for row in TABLE})},
                        "details": {"type": "array", "items": {"$ref": "#/components/schemas/Detail"}},
                    },
                },
            },
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "The key as user name."},
                "browserKey": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "api_key",
                    "description": "Only keys marked `browser: true`.",
                },
            },
        },
    }


def _operation(summary: str, content: dict[str, Any], success: str) -> dict[str, Any]:
    responses = {"200": _json_response("Durable: on disk.", {"$ref": f"#/components/schemas/{success}"})}
    by_status: dict[str, list[Refusal]] = {}
    for row in TABLE:
        by_status.setdefault(str(row.status), []).append(row)
    for status, rows in by_status.items():
        description = "; ".join(
            f"{row.error} ({', '.join(row.codes)}): {row.when}. Do: {row.sdk_should}" for row in rows
        )
        schema: dict[str, Any] = {"$ref": "#/components/schemas/Refusal"}
        if success == "BatchAnswer" and status == "400":
            schema = {"anyOf": [schema, {"$ref": "#/components/schemas/BatchAnswer"}]}
        response = _json_response(f"{description}.", schema)
        if any(row.retry_after_secs is not None for row in rows):
            response["headers"] = {"Retry-After": {"description": "Whole seconds.", "schema": {"type": "integer"}}}
        responses[status] = response
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {name: {"schema": schema} for name, schema in content.items()}},
        "responses": responses,
    }


def _json_response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
