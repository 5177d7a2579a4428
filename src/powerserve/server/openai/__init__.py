"""OpenAI's API: chat completions, completions, responses, models.

    surface.py       routes and errors
    fields.py        what chat and completions have in common: sampling, streaming, limits
    chat.py          /v1/chat/completions
    messages.py      OpenAI's messages to what chat templates take
    completions.py   /v1/completions
    responses.py     /v1/responses
    usage.py         counts and timings

Source: the API reference at platform.openai.com/docs/api-reference, and the `openai` client.
"""
