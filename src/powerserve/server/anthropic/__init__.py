"""Anthropic's API: messages, counting their tokens, models.

    surface.py            routes
    errors.py             errors in Anthropic's shape
    messages.py           /v1/messages, whole, and /v1/messages/count_tokens
    stream.py             /v1/messages as events
    fields.py             the bodies of both
    conversation.py       Anthropic's messages to what chat templates take
    tools.py              tools and tool_choice
    endings.py            why an answer ended, and what it cost
    models.py             /v1/models, for clients that send the header `anthropic-version`

Source: the API reference at docs.anthropic.com/en/api/messages, and the `anthropic` client.
"""
