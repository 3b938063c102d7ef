#!/usr/bin/env python3
"""Real clients against a real server on the built-in model.

    python clients.py target/release/crossgate

Exits non-zero with the first thing that is not as it should be.
"""
import sys

import cohere
import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from asking import DOCUMENTS, QUERY, check, post
import grpc_clients
from server import serve


def rest(http):
    status, headers, answer = post(f"{http}/rerank", {"query": QUERY, "documents": DOCUMENTS})
    order = [result["index"] for result in answer["results"]]
    check("POST /rerank puts photosynthesis first", status == 200 and order[0] == 1, answer)
    check("every answer has a request id", "x-request-id" in {name.lower() for name in headers}, headers)
    status, _, tei = post(f"{http}/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": False})
    check("TEI's body gets TEI's array", status == 200 and [row["index"] for row in tei] == order, tei)
    status, _, many = post(f"{http}/rerank", {"query": QUERY, "documents": DOCUMENTS * 333 + ["one more"]})
    check("1,000 documents in one request", status == 200 and len(many["results"]) == 1000, status)
    return {result["index"]: result["relevance_score"] for result in answer["results"]}


def errors(http):
    long = "x" * (1 << 20)
    cases = [
        ("malformed JSON", f"{http}/rerank", b'{"query": ', "application/json", 400),
        ("an empty list", f"{http}/rerank", {"query": "q", "documents": []}, "application/json", 400),
        ("an empty query", f"{http}/rerank", {"query": "", "documents": ["a"]}, "application/json", 422),
        ("a document over its bound", f"{http}/rerank", {"query": "q", "documents": ["a", long]}, "application/json", 413),
        ("an unknown model", f"{http}/rerank", {"model": "no", "query": "q", "documents": ["a"]}, "application/json", 404),
        ("a wrong content type", f"{http}/rerank", {"query": "q", "documents": ["a"]}, "text/plain", 415),
        ("a wrong route", f"{http}/rerankk", {"query": "q", "documents": ["a"]}, "application/json", 404),
    ]
    for what, url, body, content_type, expected in cases:
        status, _, answer = post(url, body, content_type)
        error = answer.get("error")
        said = isinstance(error, dict) and error.get("message") and answer.get("id")
        check(f"{what} is a {expected} that says what to do", status == expected and said, (status, answer))


def cohere_client(http, scores):
    for name, client in [("v2", cohere.ClientV2("key", base_url=http)), ("v1", cohere.Client("key", base_url=http))]:
        answer = client.rerank(model="starter", query=QUERY, documents=DOCUMENTS, top_n=2)
        found = {result.index: result.relevance_score for result in answer.results}
        same = all(abs(scores[index] - score) < 1e-6 for index, score in found.items())
        check(f"the cohere client ({name}) gets the same scores", len(found) == 2 and same, found)


def grpc_client(target, scores):
    with grpc.insecure_channel(target) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("crossgate.v1.Scoring")
        def call(name, **fields):
            method = service.FindMethodByName(name)
            request = message_factory.GetMessageClass(method.input_type)(**fields)
            invoke = channel.unary_unary(
                f"/crossgate.v1.Scoring/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString)
            return invoke(request, timeout=30)
        found = list(call("Score", query=QUERY, documents=DOCUMENTS).scores)
        same = all(abs(scores[index] - score) < 1e-6 for index, score in enumerate(found))
        check("gRPC Score, found by reflection, gives equal scores", len(found) == 3 and same, found)
        ranked = [result.index for result in call("Rerank", query=QUERY, documents=DOCUMENTS).results]
        check("gRPC Rerank puts photosynthesis first", ranked[0] == 1, ranked)
        try:
            call("Score", query=QUERY, documents=[])
            check("gRPC refuses an empty list", False)
        except grpc.RpcError as error:
            check("gRPC refuses an empty list", error.code() == grpc.StatusCode.INVALID_ARGUMENT, error)
        health = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
        check("gRPC health says SERVING", health == b"\x08\x01", health)


def main(binary):
    with serve(binary) as (http, target, seconds, _):
        print(f"ready {seconds:.2f} s after the start")
        scores = rest(http)
        errors(http)
        cohere_client(http, scores)
        grpc_client(target, scores)
        grpc_clients.clients(http, target)


if __name__ == "__main__":
    main(sys.argv[1])
