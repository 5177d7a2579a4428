"""Measure perplexity on a text, by the original's protocol.

Full batches of the text are computed one after another; those after the 17th count. Every result
line is `ppl <tokens>: <value>`.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace

from powerserve.cli import options
from powerserve.cli.prompt import add_prompt_flags, read_prompt
from powerserve.cli.speculation_flags import add_speculation_flags

DEFAULT_BATCH_SIZE = 16  # tokens; 18 batches are the least, so short texts still do


def configure(parser: ArgumentParser) -> None:
    """Declare the command's flags: the original's, of which some have no meaning here."""
    add_prompt_flags(parser)
    parser.add_argument("-n", "--n-predicts", type=options.whole_number, help="accepted, unused")
    parser.add_argument("--host", help="accepted, unused")
    parser.add_argument("--port", help="accepted, unused")
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    add_speculation_flags(parser)


def execute(arguments: Namespace) -> int:
    """Run the command."""
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
