"""Generate text as the original's powerserve-run does: the same flags, the same lines.

The prompt is echoed, the answer follows it, and everything goes to standard output. Unlike the
original, -n N generates exactly N tokens.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from powerserve.cli import options

if TYPE_CHECKING:
    from powerserve.engine.generation import Completion
    from powerserve.llm import LLM
    from powerserve.sampler.params import SamplingParams

DEFAULT_PROMPT = "Once upon a time"
DEFAULT_NUM_TOKENS = 16
END_OF_TEXT = " [end of text]"


def configure(parser: ArgumentParser) -> None:
    """Declare the flags of the original's three programs, and ours beside them."""
    options.add_prompt_flags(parser)
    parser.add_argument(
        "-n", "--n-predicts", type=options.whole_number, default=DEFAULT_NUM_TOKENS, metavar="N"
    )
    parser.add_argument("--host", default="127.0.0.1", help="accepted for the server's sake")
    parser.add_argument("--port", type=options.whole_number, default=8080)
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    options.add_sampling_flags(parser)
    options.add_speculation_flags(parser)


def execute(arguments: Namespace) -> int:
    """Run the program."""
    from powerserve.cli.interrupt import interruptible
    from powerserve.cli.statistics import info, memory_line, prompt_line, speed_lines
    from powerserve.llm import DEFAULT_MODEL, LLM

    prompt = _prompt(arguments)
    source = options.find_model(arguments, DEFAULT_MODEL)
    load_options = options.load_options(arguments, source.hparams)
    with LLM(source, load_options) as llm:
        params = options.sampling_params(arguments, source.hparams, arguments.n_predicts)
        for line in (
            memory_line("model"),
            prompt_line(prompt),
            f"n_predicts  : {arguments.n_predicts}",
            f"model arch  : {llm.loaded.config.architecture}",
            f"n_threads   : {llm.loaded.num_threads}",
            f"batch_size  : {load_options.batch_size}",
        ):
            info(line, sys.stdout)
        if arguments.use_spec:
            print("[WARN ] speculation is not available yet", file=sys.stderr)
        with interruptible(llm.loaded.backend):
            completion = _generate(llm, prompt, params)
        if completion.token_ids:
            for line in speed_lines(completion):
                info(line, sys.stdout)
    return 0


def _prompt(arguments: Namespace) -> str:
    if arguments.prompt_file is not None:
        return options.read_prompt_file(arguments.prompt_file)
    return DEFAULT_PROMPT if arguments.prompt is None else str(arguments.prompt)


def _generate(llm: LLM, prompt: str, params: SamplingParams) -> Completion:
    tokenizer = llm.loaded.tokenizer
    token_ids = tokenizer.encode(prompt)
    if params.max_tokens:
        print(tokenizer.decode(token_ids), end="", flush=True)
    generation = llm.start(token_ids, params)
    for piece in llm.pieces(generation):
        print(piece.text, end="", flush=True)
    completion = generation.completion()
    print(END_OF_TEXT if completion.finish_reason == "stop" else "", flush=True)
    return completion
