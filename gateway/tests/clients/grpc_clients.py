"""Clients over gRPC that know our services by reflection alone, and Triton's own client over both protocols.

Called by `clients.py`; alone:

    python grpc_clients.py target/release/crossgate
"""
import itertools
import sys

import grpc
import numpy
import tritonclient.grpc
import tritonclient.http
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.utils import InferenceServerException

from server import serve

QUERY = "how do plants make energy"
DOCUMENTS = [
    "The stock market fell sharply on Monday.",
    "Photosynthesis turns sunlight, water and carbon dioxide into glucose.",
    "Berlin is the capital of Germany.",
]
# Requests on one stream.
STREAMED = 200


def check(what, condition, seen=None):
    if not condition:
        sys.exit(f"FAILED {what}: {seen!r}")
    print(f"ok      {what}")


class Reflected:
    """A service's methods as functions, made of nothing but what the server tells."""

    def __init__(self, channel, name):
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self.channel, self.service = channel, self.pool.FindServiceByName(name)

    def message(self, method):
        return message_factory.GetMessageClass(self.service.FindMethodByName(method).input_type)

    def _open(self, kind, name):
        output = self.service.FindMethodByName(name).output_type
        return getattr(self.channel, kind)(
            f"/{self.service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(output).FromString)

    def call(self, name, **fields):
        return self._open("unary_unary", name)(self.message(name)(**fields), timeout=30)

    def gather(self, name, requests):
        return self._open("stream_unary", name)(iter(requests), timeout=30)

    def stream(self, name, requests):
        return self._open("stream_stream", name)(iter(requests), timeout=60)


def near(found, wanted):
    return len(found) == len(wanted) and all(abs(a - b) < 1e-6 for a, b in zip(found, wanted))


def ours(channel):
    service = Reflected(channel, "crossgate.v1.Scoring")
    scores = list(service.call("Score", query=QUERY, documents=DOCUMENTS).scores)
    check("Score has one score for each document", len(scores) == 3 and scores[1] == max(scores), scores)
    pairs = [{"query": QUERY, "document": document} for document in DOCUMENTS]
    check("Score of pairs is the same", near(list(service.call("Score", pairs=pairs).scores), scores))
    cut = service.call("Score", query=QUERY, documents=["plants " * 100], form={"document_tokens_max": 5})
    check("a form bounds tokens, and a warning says so", list(cut.truncated) == [0] and cut.warnings, cut)
    labels = service.call("Predict", pairs=pairs).predictions
    found = [one.scores[0].score for one in labels]
    check("Predict names labels", near(found, scores) and labels[0].label, labels)
    models = service.call("ListModels").models
    check("ListModels names the starter", [model.name for model in models] == ["starter"], models)

    request = service.message("ScoreStream")
    asked = [request(id=str(n), score={"query": QUERY, "documents": DOCUMENTS}) for n in range(STREAMED)]
    asked.append(request(id="empty", score={"query": QUERY}))
    answers = {answer.id: answer for answer in service.stream("ScoreStream", asked)}
    failed = answers.pop("empty")
    right = [near(list(answer.score.scores), scores) for answer in answers.values()]
    check(f"{STREAMED} requests on one stream are all answered", len(right) == STREAMED and all(right), len(right))
    check("a wrong one among them fails alone",
          failed.failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0], failed)
    endless = (request(id=str(n), score={"query": QUERY, "documents": DOCUMENTS}) for n in itertools.count())
    call = service.stream("ScoreStream", endless)
    check("a stream without end gives answers", next(call).WhichOneof("outcome") == "score")
    call.cancel()
    return scores


def tei(channel, logits):
    rerank = Reflected(channel, "tei.v1.Rerank")
    answer = rerank.call("Rerank", query=QUERY, texts=DOCUMENTS, raw_scores=True, return_text=True)
    found = {rank.index: rank.score for rank in answer.ranks}
    check("TEI's Rerank gives equal logits", near([found[n] for n in range(3)], logits), found)
    check("the best stands first, with its text", answer.ranks[0].text == DOCUMENTS[1], answer)
    check("TEI's metadata count tokens", answer.metadata.compute_tokens > 10, answer.metadata)
    request = rerank.message("RerankStream")
    answer = rerank.gather("RerankStream", [request(query=QUERY, text=text) for text in DOCUMENTS])
    check("TEI's RerankStream ranks as well", answer.ranks[0].index == 1, answer)
    predict = Reflected(channel, "tei.v1.Predict")
    pair = predict.call("PredictPair", inputs=[QUERY, DOCUMENTS[1]], raw_scores=True)
    check("TEI's PredictPair gives the same logit", near([pair.predictions[0].score], logits[1:2]), pair)
    request = predict.message("PredictPairStream")
    asked = [request(inputs=[QUERY, text], raw_scores=True) for text in DOCUMENTS]
    found = [answer.predictions[0].score for answer in predict.stream("PredictPairStream", asked)]
    check("TEI's PredictPairStream answers in order", near(found, logits), found)
    tokenize = Reflected(channel, "tei.v1.Tokenize")
    tokens = tokenize.call("Tokenize", inputs=QUERY, add_special_tokens=False).tokens
    check("TEI's Tokenize says where tokens stand",
          all(QUERY[token.start:token.stop] == token.text for token in tokens), tokens)
    text = tokenize.call("Decode", ids=[token.id for token in tokens], skip_special_tokens=True).text
    check("TEI's Decode gives the text back", text.replace(" ", "") == QUERY.replace(" ", ""), text)
    info = Reflected(channel, "tei.v1.Info").call("Info")
    check("TEI's Info names a reranker", info.model_type == 2 and info.max_input_length > 0, info)


def tensors(module):
    query = module.InferInput("query", [1], "BYTES")
    query.set_data_from_numpy(numpy.array([QUERY.encode()], dtype=numpy.object_))
    documents = module.InferInput("documents", [len(DOCUMENTS)], "BYTES")
    documents.set_data_from_numpy(numpy.array([text.encode() for text in DOCUMENTS], dtype=numpy.object_))
    return [query, documents]


def triton(module, address, scores):
    name = module.__name__
    client = module.InferenceServerClient(address)
    check(f"{name}: live and ready", client.is_server_live() and client.is_server_ready()
          and client.is_model_ready("starter"))
    metadata = client.get_model_metadata("starter")
    inputs = metadata["inputs"] if isinstance(metadata, dict) else metadata.inputs
    check(f"{name}: the model has two inputs", len(inputs) == 2, metadata)
    server = client.get_server_metadata()
    check(f"{name}: the server has a name", (server["name"] if isinstance(server, dict) else server.name) == "crossgate")
    found = client.infer("starter", tensors(module)).as_numpy("scores")
    check(f"{name}: infer gives equal scores", near(found.tolist(), scores), found)
    output = module.InferRequestedOutput("scores")
    answer = client.infer("starter", tensors(module), outputs=[output], request_id="7", model_version="1",
                          parameters={"max_tokens_per_doc": 3}, timeout=20_000_000)
    response = answer.get_response()
    warnings = response["parameters"]["warnings"] if isinstance(response, dict) \
        else response.parameters["warnings"].string_param
    check(f"{name}: parameters are followed", "cut to the tokens allowed" in warnings, response)
    pairs = tensors(module)
    pairs[0] = module.InferInput("query", [3, 1], "BYTES")
    pairs[0].set_data_from_numpy(numpy.array([[QUERY.encode()]] * 3, dtype=numpy.object_))
    found = client.infer("starter", pairs).as_numpy("scores")
    check(f"{name}: a query for each document", near(found.tolist(), scores), found)
    for what, wrong in [("an unknown model", lambda: client.infer("none", tensors(module))),
                        ("a missing tensor", lambda: client.infer("starter", tensors(module)[:1]))]:
        try:
            wrong()
            check(f"{name}: {what} is refused", False)
        except InferenceServerException as error:
            check(f"{name}: {what} is refused in words", "there is no" in error.message()
                  or "is missing" in error.message(), error)
    if module is tritonclient.http:
        plain = tensors(module)
        for tensor, data in zip(plain, [[QUERY], DOCUMENTS]):
            tensor.set_data_from_numpy(numpy.array(data, dtype=numpy.object_), binary_data=False)
        output = module.InferRequestedOutput("scores", binary_data=False)
        found = client.infer("starter", plain, outputs=[output]).as_numpy("scores")
        check(f"{name}: JSON both ways gives equal scores", near(found.tolist(), scores), found)
    client.close()


def clients(http, target):
    with grpc.insecure_channel(target) as channel:
        scores = ours(channel)
        raw = Reflected(channel, "crossgate.v1.Scoring").call(
            "Score", query=QUERY, documents=DOCUMENTS, raw_scores=True)
        tei(channel, list(raw.scores))
    triton(tritonclient.grpc, target, scores)
    triton(tritonclient.http, http.removeprefix("http://"), scores)


if __name__ == "__main__":
    with serve(sys.argv[1]) as (http, target, _, _):
        clients(http, target)
