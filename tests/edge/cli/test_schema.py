import json
from typing import Any


def test_schema_is_json_and_follows_the_configuration(edge: Any, config_path: Any) -> None:
    result = edge("schema", "-c", config_path(schema={"required": ["platform"], "unknown_fields": "keep"}))
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert "platform" in schema["required"]
    assert schema["additionalProperties"] is True
    assert schema["properties"]["device_type"]["enum"] == ["mobile", "desktop", "tablet"]


def test_schema_openapi_is_the_whole_document(edge: Any, config_path: Any) -> None:
    document = json.loads(edge("schema", "--openapi", "-c", config_path()).stdout)
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) >= {"/ingest", "/ingest/batch"}
