"""Ollama's API: chat, generate, models, downloads.

    surface.py            routes, and those that are refused
    errors.py             errors in Ollama's shape
    fields.py             what chat and generate have in common
    options.py            `options`: sampling
    durations.py          `keep_alive`, and times in nanoseconds
    chat.py               /api/chat; tool_calls.py: its calls
    generate.py           /api/generate; context.py: its memory, which the client keeps
    embeddings.py         /api/embed, /api/embeddings
    lines.py              an answer as JSON objects, whole or line by line
    loading.py            requests without a prompt, which load or unload a model
    models.py             /api/tags, /api/show, /api/ps, /api/version
    descriptions.py       what a model's files say about it
    pull.py               /api/pull; pull_report.py: how far it is

Source: docs/api.md of github.com/ollama/ollama, and the `ollama` client.
"""
