"""The HTTP server. From the outside in:

    run.py            the process: listening, the ready line, signals, stopping
    connection.py     what uvicorn does with a connection, with limits on slow clients
    app.py            all surfaces and middleware as one ASGI application
    security.py       who may talk to the server: key, Host, Origin, sizes
    body.py           bodies: of what type, how large, how fast
    endpoint.py       one route: body in, reply or event stream out, errors, disconnects, timeout
    surface.py        what an API family consists of; `openai/`, `anthropic/`, `ollama/`, `web/`
    operations.py     /health, /metrics, /slots, /tokenize, /detokenize
    original.py       the original server's error body and counting (`--compat`)

    request.py        the neutral request that every family translates to …
    bounds.py         what it may ask of the sampler
    answer.py         … and the neutral answer it translates from
    content.py        generated text to content, reasoning and tool calls
    serving.py        from request to answer: limits, model, prompt, engine
    preparation.py    messages to tokens, grammar and parsers, by the model's template
    reasoning.py      what a model thinks, told from what it answers; tool_calls/: what it calls

    catalogue.py      which models there are; names to files
    model_pool.py     which of them are loaded
    model_runner.py   a loaded model as the event loop sees it
    engine_thread.py  the thread that owns an engine; embedding_queue.py: what it does beside
    events.py         what that thread reports, as plain data

asyncio lives here and in the clients of `evaluate/server_load` and `evaluate/server_soak`. A family
is added by writing a function that returns a `Surface` and naming it in `app.py`; it needs nothing
but `request`, `answer`, `serving` and `surface`.
"""
