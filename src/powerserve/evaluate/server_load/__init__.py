"""A load generator for servers with OpenAI's API, as a client sees them.

plan.py           what the clients do
target.py         which server
prompts.py        texts of a given length
http_stream.py    one streamed reply over HTTP
chat_request.py   one chat, timed piece by piece
run.py            many of them: closed loop or Poisson arrivals
summary.py        throughput and percentiles
plot.py           distributions
"""
