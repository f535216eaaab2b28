"""What a served model says of itself: metadata, OpenAPI, the page to try it, counters for Prometheus."""

from collections.abc import Mapping
from typing import Any

from mcls.inference.batching import Batcher
from mcls.inference.predict import Classifier
from mcls.report.html import try_html
from mcls.system.text import plural
from mcls.version import __version__


def metadata(name: str, model: Classifier) -> dict[str, Any]:
    """What GET /metadata says of a model called `name`."""
    inputs: dict[str, Any] = {"shape": model.input_shape}
    if model.image:
        inputs = {"kind": "image", **inputs}
    elif model.encoder is not None:
        columns = zip(model.encoder["columns"], model.encoder["categories"], strict=True)
        inputs = {
            "kind": "table",
            "columns": [{"name": name, **({"categories": known} if known else {})} for name, known in columns],
        }
    else:
        inputs = {"kind": "numbers", **inputs}
    about = {"model": name, "classes": model.classes, "input": inputs, "mcls": __version__}
    return about if model.temperature == 1 else {**about, "temperature": model.temperature}


def example_request(about: dict[str, Any]) -> list[list[str]]:
    """Two lines of a table that the model takes, the first a header; the first category of each column, or 0."""
    inputs = about["input"]
    if inputs["kind"] == "table":
        columns = inputs["columns"]
        return [[column["name"] for column in columns], [column.get("categories", ["0"])[0] for column in columns]]
    count = 1
    for length in inputs["shape"]:
        count *= length
    return [[f"x{index}" for index in range(count)], ["0"] * count]


def try_page(about: dict[str, Any]) -> str:
    """The page to try a model."""
    inputs, classes = about["input"], about["classes"]
    image = inputs["kind"] == "image"
    size = " x ".join(map(str, inputs["shape"][:0:-1])) if image else ""  # width and height
    takes = f"pictures, resized to {size}" if image else f"rows of {plural(len(example_request(about)[0]), 'column')}"
    return try_html(
        about["model"], f"{takes}; {len(classes):,} classes", image, [] if image else example_request(about)
    )


def openapi(about: dict[str, Any]) -> dict[str, Any]:
    """The description of the service in OpenAPI 3.1."""
    text, number = {"type": "string"}, {"type": "number"}
    files = {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}}
    bodies: dict[str, Any] = {"multipart/form-data": files}
    if about["input"]["kind"] == "image":
        bodies |= {"image/*": {}, "application/octet-stream": {}}
    else:
        bodies |= {"application/json": {"schema": {"type": "array"}}, "text/csv": {"schema": text}}
    guess = {"class": {**text, "enum": about["classes"]}, "probability": number}
    top = {"type": "array", "items": {"type": "object", "properties": guess}}
    one = {"type": "object", "properties": {"input": text, **guess, "top": top}}
    answer = {"type": "object", "properties": {"predictions": {"type": "array", "items": one}}}
    wrong = {"content": {"application/json": {"schema": {"type": "object", "properties": {"error": text}}}}}
    statuses = {
        "400": "the request is cut off or malformed",
        "408": "the request did not arrive in time",
        "413": "too large",
        "415": "another kind of content than the model takes",
        "422": "a picture or a row is wrong",
        "503": "too many requests, or no answer in time",
    }
    predict = {
        "summary": "Classify pictures or rows",
        "parameters": [{"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 10}}],
        "requestBody": {"required": True, "content": bodies},
        "responses": {
            "200": {"description": "a class for each input", "content": {"application/json": {"schema": answer}}},
            **{status: {"description": what, **wrong} for status, what in statuses.items()},
        },
    }
    paths: dict[str, Any] = {"/predict": {"post": predict}}
    for path, what in {
        "/health": "whether it serves",
        "/metadata": "classes and inputs",
        "/metrics": "counters",
    }.items():
        paths[path] = {"get": {"summary": what, "responses": {"200": {"description": what}}}}
    return {"openapi": "3.1.0", "info": {"title": about["model"], "version": __version__}, "paths": paths}


def prometheus(answers: Mapping[int, int], seconds: float, batcher: Batcher) -> str:
    """The counters in Prometheus' text format."""
    counters: dict[str, tuple[str, str, Mapping[str, float]]] = {
        "mcls_requests_total": (
            "counter",
            "requests to /predict, by HTTP status",
            {f'{{status="{status}"}}': answers[status] for status in sorted(answers)},
        ),
        "mcls_request_seconds_total": ("counter", "seconds from their arrival to the answer", {"": seconds}),
        "mcls_samples_total": ("counter", "samples that the model was given", {"": batcher.computed}),
        "mcls_batches_total": ("counter", "batches that the model was given", {"": batcher.batches}),
        "mcls_model_seconds_total": ("counter", "seconds that the model took", {"": batcher.seconds}),
        "mcls_waiting_samples": ("gauge", "samples that wait for the model", {"": batcher.samples}),
    }
    lines = []
    for name, (kind, what, values) in counters.items():
        lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{label} {value}" for label, value in values.items()]
    return "\n".join(lines) + "\n"
