"""All that a model server offers is reached through the gateway, with OpenAI's own client where that knows it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from deployments.gateway.app import Gateway
from tests import upstream
from tests.support.gateway_world import KEY, World, serving
from tests.upstream import Asked, StandIn, stand_in

USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
RESPONSE: dict[str, Any] = {
    "id": "r1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": [
        {"id": "o1", "type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Ada", "annotations": []}]}
    ], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": USAGE,
}
CALL = {"id": "t1", "type": "function", "function": {"name": "height", "arguments": '{"of": "珠穆朗玛峰"}'}}
LOGPROBS = {"content": [{"token": "8", "logprob": -0.5, "bytes": [56], "top_logprobs": []}]}
ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {
        "object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    },
    "/v1/responses": RESPONSE,
    "/v1/messages": {
        "id": "a1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "Ada"}], "usage": {"input_tokens": 7, "output_tokens": 3},
    },
    "/v1/messages/count_tokens": {"input_tokens": 7},
    "/tokenize": {"count": 2, "max_model_len": 8, "tokens": [1, 2]},
    "/detokenize": {"prompt": "Who?"},
    "/v1/rerank": {"id": "k1", "model": "m", "usage": {"total_tokens": 4}, "results": []},
    "/v1/score": {"id": "s1", "object": "list", "model": "m", "data": [{"index": 0, "object": "score", "score": 0.5}]},
    "/classify": {"id": "y1", "object": "list", "model": "m", "data": []},
    "/pooling": {"id": "p1", "object": "list", "model": "m", "data": []},
    "/v1/chat/completions/batch": {"id": "b1", "object": "chat.completion.batch", "choices": []},
    "/v1/chat/completions/render": {"prompt_token_ids": [1, 2]},
    "/v1/completions/render": {"prompt_token_ids": [3]},
    "/v1/messages/render": {"prompt_token_ids": [4]},
    "/v1/responses/render": {"prompt_token_ids": [5]},
    "/v1/systemone": {"decision": "yes"},
    "/generative_scoring": {"id": "g1", "object": "list", "model": "m", "data": []},
    "/v2/embed": {"id": "e1", "embeddings": {"float": [[0.5]]}, "texts": ["Who?"]},
    "/v1/audio/transcriptions": {"text": "one two", "usage": {"type": "duration", "seconds": 2}},
    "/v1/audio/translations": {"text": "un deux"},
    "/v1/chat/completions": {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m", "usage": upstream.USAGE, "choices": [
            {"index": 0, "finish_reason": "tool_calls", "logprobs": LOGPROBS,
             "message": {"role": "assistant", "content": None, "tool_calls": [CALL]}}
        ],
    },
}


async def answer(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answer as vLLM's server has it for the path; the Responses API streams when asked to."""
    path = asked.line.split()[1]
    if path == "/v1/responses" and asked.json.get("stream"):
        assert "stream_options" not in asked.json  # it does not know them, and says its usage unasked
        await server.send(writer, upstream.HEAD % b"text/event-stream")
        done = {"type": "response.completed", "sequence_number": 1, "response": RESPONSE}
        await server.send(writer, upstream.chunk(b"event: response.completed\n" + upstream.event(done)) + upstream.END)
    else:
        await upstream.answer_json(server, writer, ANSWERS[path])


@dataclass
class Pair:
    """OpenAI's client of a gateway, the model server behind it, and what is counted."""

    client: openai.AsyncOpenAI
    server: StandIn
    world: World
    gateway: Gateway


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with stand_in(answer) as server:
        world = World(m=server.port)
        gateway = world.gateway()
        async with serving(gateway) as port:
            http = openai.DefaultAsyncHttpxClient(trust_env=False)
            base = f"http://127.0.0.1:{port}/v1"
            async with openai.AsyncOpenAI(api_key=KEY, base_url=base, max_retries=0, http_client=http) as client:
                yield Pair(client, server, world, gateway)
            await gateway.close()


async def test_embeddings(pair: Pair) -> None:
    found = await pair.client.embeddings.create(model="m", input=["Who?"], encoding_format="float")
    assert found.data[0].embedding == [0.5, -0.25]


async def test_tools_and_logprobs(pair: Pair) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How high?"}]
    tool: ChatCompletionToolParam = {"type": "function", "function": {"name": "height", "parameters": {}}}
    found = await pair.client.chat.completions.create(model="m", messages=asked, tools=[tool], logprobs=True)
    (choice,) = found.choices
    assert choice.message.tool_calls and choice.message.tool_calls[0].model_dump() == CALL
    assert choice.logprobs and choice.logprobs.content and choice.logprobs.content[0].logprob == -0.5
    assert pair.server.asked[0].json["tools"] == [tool]


async def test_responses(pair: Pair) -> None:
    assert (await pair.client.responses.create(model="m", input="Who?")).output_text == "Ada"


async def test_streamed_responses_are_counted_by_the_usage_in_their_last_event(pair: Pair) -> None:
    stream = await pair.client.responses.create(model="m", input="Who?", stream=True)
    assert [event.type async for event in stream] == ["response.completed"]
    await pair.gateway.close()  # writes down what it counted
    (count,) = pair.world.counted.values()
    assert (count.prompt_tokens, count.completion_tokens, count.estimated) == (7, 3, 0)


async def test_recordings(pair: Pair) -> None:
    recording = ("a.wav", bytes(range(256)) * 4000, "audio/wav")
    transcribed = await pair.client.audio.transcriptions.create(model="m", file=recording)
    translated = await pair.client.post(  # its own method is deprecated
        "/audio/translations", cast_to=object, body={"model": "m"}, files={"file": recording},
        options={"headers": {"Content-Type": "multipart/form-data"}})
    assert (transcribed.text, translated) == ("one two", {"text": "un deux"})
    assert all(recording[1] in asked.body for asked in pair.server.asked)


@pytest.mark.parametrize("path", [
    "messages", "messages/count_tokens", "tokenize", "detokenize", "rerank", "score", "classify", "pooling",
    "chat/completions/batch", "chat/completions/render", "completions/render", "messages/render", "responses/render",
    "systemone", "generative_scoring", "embed",
])
async def test_what_openais_client_has_no_method_for(path: str, pair: Pair) -> None:
    sent = {"model": "m", "prompt": "Who?", "x": [1, {"y": None}]}
    found = await pair.client.post(f"/{path}", body=sent, cast_to=object)
    own = pair.server.asked[0].line.split()[1]
    assert own in (f"/v1/{path}", f"/{path}", f"/v2/{path}")
    assert found == ANSWERS[own]
    assert pair.server.asked[0].json == sent


async def test_what_a_model_of_another_kind_does_not_offer_is_said(pair: Pair) -> None:
    async def other_kind(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await upstream.answer_json(server, writer, {"detail": "Not Found"}, "404 Not Found", (",", ":"))

    pair.server.behaviour = other_kind
    with pytest.raises(openai.NotFoundError, match="The model “m” does not offer /v1/audio/speech") as refused:
        await pair.client.audio.speech.create(model="m", input="Who?", voice="alloy")
    assert refused.value.code == "endpoint_not_offered"
    pair.server.behaviour = own_404
    with pytest.raises(openai.NotFoundError, match="no such adapter"):
        await pair.client.embeddings.create(model="m", input="x")
    assert await counted(pair) == (2, 2)


async def own_404(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
    await upstream.answer_json(server, writer, {"error": {"message": "no such adapter"}}, "404 Not Found")


async def counted(pair: Pair) -> tuple[int, int]:
    """Requests and errors, once the gateway has written them down."""
    await pair.gateway.close()
    (count,) = pair.world.counted.values()
    return count.requests, count.errors


async def test_speech_comes_back_as_it_is(pair: Pair) -> None:
    sound = bytes(range(256)) * 1000

    async def speaks(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, upstream.HEAD % b"audio/wav" + upstream.chunk(sound) + upstream.END)

    pair.server.behaviour = speaks
    spoken = await pair.client.audio.speech.create(model="m", input="Who?", voice="alloy", response_format="wav")
    assert spoken.content == sound


async def test_responses_are_not_kept_and_that_is_said(pair: Pair) -> None:
    with pytest.raises(openai.NotFoundError, match="Answers are not kept"):
        await pair.client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="Answers are not kept"):
        await pair.client.responses.cancel("resp_1")
    assert not pair.server.asked


async def test_errors_of_the_model_server_keep_their_status_and_words(pair: Pair) -> None:
    refusal = {"message": "This model's maximum context length is 8 tokens.", "type": "BadRequestError", "code": 400}

    async def refuses(server: StandIn, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await upstream.answer_json(server, writer, {"error": refusal | {"param": None}}, "400 Bad Request")

    pair.server.behaviour = refuses
    with pytest.raises(openai.BadRequestError, match="maximum context length") as refused:
        await pair.client.responses.create(model="m", input="Who?")
    assert json.loads(refused.value.response.content)["error"]["code"] == 400
