#!/usr/bin/env python3
"""Frameworks that rerank through other people's servers, unchanged, against a real server on the built-in model.

    python frameworks.py target/release/crossgate

Each is pointed at the server by its own base URL and must find the order and the scores that the server gives
over plain HTTP: as the model scores, as TEI's servers do (between 0 and 1), or as NVIDIA's do (logits).
Exits non-zero with the first thing that is not as it should be.
"""
import asyncio
import math
import os
import sys
import warnings

os.environ.update(COHERE_API_KEY="key", CO_API_KEY="key", JINA_API_KEY="key", NVIDIA_API_KEY="key",
                  INFINITY_API_KEY="key", HF_TOKEN="hf_key", VOYAGE_API_KEY="key", MXBAI_API_KEY="key",
                  HAYSTACK_TELEMETRY_ENABLED="False", LITELLM_LOCAL_MODEL_COST_MAP="True")
warnings.filterwarnings("ignore")

from asking import DOCUMENTS, QUERY, check, post
from server import serve

MODEL = "starter"


def by_text(pairs):
    """Scores in the documents' order; every document must be there."""
    found = dict(pairs)
    return [found[document] for document in DOCUMENTS]


def by_index(pairs):
    found = dict(pairs)
    return [found[index] for index in range(len(DOCUMENTS))]


def cohere_v1(http):
    import cohere
    answer = cohere.Client("key", base_url=http).rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    return by_index((result.index, result.relevance_score) for result in answer.results)


def cohere_v2(http):
    import cohere
    answer = cohere.ClientV2("key", base_url=http).rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
    return by_index((result.index, result.relevance_score) for result in answer.results)


def langchain_cohere(http):
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document
    reranker = CohereRerank(model=MODEL, base_url=http, top_n=3)
    found = reranker.compress_documents([Document(page_content=text) for text in DOCUMENTS], QUERY)
    return by_text((document.page_content, document.metadata["relevance_score"]) for document in found)


def langchain_nvidia(http):
    from langchain_core.documents import Document
    from langchain_nvidia_ai_endpoints import NVIDIARerank
    reranker = NVIDIARerank(model=MODEL, base_url=f"{http}/v1", truncate="END")
    found = reranker.compress_documents(query=QUERY, documents=[Document(page_content=text) for text in DOCUMENTS])
    return by_text((document.page_content, document.metadata["relevance_score"]) for document in found)


def llama_index(postprocessor):
    from llama_index.core.schema import NodeWithScore, TextNode
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in DOCUMENTS]
    found = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    return by_text((node.node.text, node.score) for node in found)


def llama_index_cohere(http):
    from llama_index.postprocessor.cohere_rerank import CohereRerank
    return llama_index(CohereRerank(model=MODEL, base_url=http, top_n=3))


def llama_index_tei(http):
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
    return llama_index(TextEmbeddingInference(base_url=http, top_n=3))


def haystack(ranker):
    from haystack import Document
    found = ranker.run(query=QUERY, documents=[Document(content=text) for text in DOCUMENTS], top_k=3)
    return by_text((document.content, document.score) for document in found["documents"])


def haystack_cohere(http):
    from haystack_integrations.components.rankers.cohere import CohereRanker
    return haystack(CohereRanker(model=MODEL, api_base_url=http))


def haystack_tei(http):
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
    return haystack(HuggingFaceTEIRanker(url=http))


def haystack_jina(http):
    from haystack_integrations.components.rankers.jina import JinaRanker
    return haystack(JinaRanker(model=MODEL, base_url=f"{http}/v1/rerank"))


def litellm(provider, path=""):
    def rerank(http):
        import litellm
        answer = litellm.rerank(model=f"{provider}/{MODEL}", query=QUERY, documents=DOCUMENTS, top_n=3,
                                return_documents=True, api_base=f"{http}{path}", api_key="key")
        return by_index((result["index"], result["relevance_score"]) for result in answer.results)
    return rerank


def mixedbread(http):
    from mixedbread import Mixedbread
    answer = Mixedbread(api_key="key", base_url=http).rerank(model=MODEL, query=QUERY, input=DOCUMENTS,
                                                             top_k=3, return_input=True)
    return by_text((result.input, result.score) for result in answer.data)


def voyage(http):
    import voyageai
    answer = voyageai.Client("key", base_url=f"{http}/v1").rerank(QUERY, DOCUMENTS, model=MODEL)
    check("voyageai counts tokens", answer.total_tokens > 0, answer)
    return by_index((result.index, result.relevance_score) for result in answer.results)


def huggingface_hub(http):
    """The labels of one text, with their probabilities."""
    from huggingface_hub import AsyncInferenceClient, InferenceClient
    found = InferenceClient(token="hf_key").text_classification(DOCUMENTS[1], model=f"{http}/predict")

    async def again():
        async with AsyncInferenceClient(token="hf_key") as client:
            return await client.text_classification(DOCUMENTS[1], model=f"{http}/predict")
    check("huggingface_hub gives the same without waiting", asyncio.run(again()) == found, found)
    return found


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


#: Name, what asks, and how the scores come out.
CLIENTS = [
    ("cohere's client, v1", cohere_v1, "own"),
    ("cohere's client, v2", cohere_v2, "own"),
    ("langchain-cohere", langchain_cohere, "own"),
    ("langchain-nvidia", langchain_nvidia, "logit"),
    ("llama-index, Cohere", llama_index_cohere, "own"),
    ("llama-index, TEI", llama_index_tei, "sigmoid"),
    ("haystack, Cohere", haystack_cohere, "own"),
    ("haystack, TEI", haystack_tei, "sigmoid"),
    ("haystack, Jina", haystack_jina, "own"),
    ("LiteLLM, cohere", litellm("cohere"), "own"),
    ("LiteLLM, infinity", litellm("infinity", "/infinity"), "own"),
    ("LiteLLM, hosted_vllm", litellm("hosted_vllm"), "own"),
    ("LiteLLM, huggingface", litellm("huggingface"), "sigmoid"),
    ("LiteLLM, jina_ai", litellm("jina_ai", "/v1/rerank"), "own"),
    ("LiteLLM, nvidia_nim", litellm("nvidia_nim"), "logit"),
    ("Mixedbread's client", mixedbread, "own"),
]


def compare(name, found, wanted):
    same = all(abs(a - b) < 1e-6 for a, b in zip(found, wanted, strict=True))
    check(f"{name}: the scores of plain HTTP", same, (found, wanted))


def plain(http, path="/rerank"):
    """Scores as the model has them, as logits, and as TEI's servers have them."""
    def scores(**fields):
        _, _, answer = post(f"{http}{path}", {"query": QUERY, "documents": DOCUMENTS, **fields})
        return by_index((result["index"], result["relevance_score"]) for result in answer["results"])
    logits = scores(raw_scores=True)
    check("photosynthesis comes first", logits[1] == max(logits), logits)
    return {"own": scores(), "logit": logits, "sigmoid": [sigmoid(logit) for logit in logits]}


def main(binary):
    with serve(binary) as (http, *_):
        wanted = plain(http)
        for name, rerank, kind in CLIENTS:
            compare(name, rerank(http), wanted[kind])
        found = huggingface_hub(http)
        check("huggingface_hub classifies a text", len(found) == 1 and 0 < found[0].score < 1, found)
    with serve(binary, "--voyage") as (http, *_):
        compare("Voyage's client", voyage(http), plain(http)["own"])
        compare("LiteLLM, voyage", litellm("voyage")(http), plain(http)["own"])


if __name__ == "__main__":
    main(sys.argv[1])
