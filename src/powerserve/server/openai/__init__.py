"""OpenAI's API: chat completions, completions, responses, models.

    surface.py            routes
    errors.py             errors in OpenAI's shape
    fields.py             what chat and completions have in common: sampling, streaming, limits
    formats.py            response_format and grammars
    tools.py              tools and tool_choice
    messages.py           OpenAI's messages to what chat templates take
    chat.py               /v1/chat/completions, whole; chat_stream.py: as events
    completions.py        /v1/completions
    embeddings.py         /v1/embeddings; prompts.py: the texts of both
    responses.py          /v1/responses; response_input.py and response_output.py: its items
    models.py             /v1/models
    usage.py              counts, timings and log-probabilities

Source: the API reference at platform.openai.com/docs/api-reference, and the `openai` client.
"""
