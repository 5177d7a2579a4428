"""Measure perplexity on a text, by the original's protocol or llama.cpp's.

The original's: full batches of the text are computed one after another; those after the 17th count.
Every result line is `ppl <tokens>: <value>`.

  powerserve perplexity -m model.gguf -f text.txt
  powerserve perplexity -m model.gguf -f text.txt --chunked            llama.cpp's protocol
  powerserve perplexity -m q4.gguf --compare-with f16.gguf -f text.txt     KL divergence and more
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace

from powerserve.cli import options
from powerserve.cli.prompt import add_prompt_flags, read_prompt
from powerserve.cli.speculation_flags import add_speculation_flags
from powerserve.cli.window_perplexity import add_window_flags, measure_windows, wants_windows

DEFAULT_BATCH_SIZE = 16  # tokens; 18 batches are the least, so short texts still do


def configure(parser: ArgumentParser) -> None:
    """Declare the command's flags: the original's, of which some have no meaning here."""
    add_prompt_flags(parser)
    parser.add_argument("-n", "--n-predicts", type=options.whole_number, help="accepted, unused")
    parser.add_argument("--host", help="accepted, unused")
    parser.add_argument("--port", help="accepted, unused")
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    add_window_flags(parser)
    add_speculation_flags(parser)


def execute(arguments: Namespace) -> int:
    """Run the command."""
    if wants_windows(arguments):
        return measure_windows(arguments)
    from powerserve.cli.interrupt import interruptible
    from powerserve.cli.statistics import info
    from powerserve.evaluate.perplexity import running_perplexity
    from powerserve.llm import DEFAULT_MODEL, LLM
    from powerserve.speculative.options import SpeculationMode, SpeculationOptions

    text = read_prompt(arguments)
    source = options.find_model(arguments, DEFAULT_MODEL)
    load_options = replace(
        options.load_options(arguments, source.hparams),
        speculation=SpeculationOptions(mode=SpeculationMode.OFF),
    )
    explicit = arguments.batch_size or (source.hparams.batch_size if source.hparams else 0)
    batch_size = explicit or DEFAULT_BATCH_SIZE
    with LLM(source, load_options) as llm:
        token_ids = llm.loaded.tokenizer.encode(text)
        info(f"dataset: {len(token_ids)} tokens", sys.stdout)
        info(f"batch_size  : {batch_size}", sys.stdout)
        with interruptible(llm.loaded.backend):
            for point in running_perplexity(
                llm.loaded.model,
                token_ids,
                batch_size=batch_size,
                kv_dtype=load_options.kv_dtype,
            ):
                info(f"ppl {point.num_tokens}: {point.perplexity:.6f}", sys.stdout)
    return 0
