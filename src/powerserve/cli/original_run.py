"""Generate text as the original's powerserve-run does: the same flags, the same lines.

The prompt is echoed, the answer follows it, and everything goes to standard output. Unlike the
original, -n N generates exactly N tokens.
"""

from __future__ import annotations

import secrets
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.cli.prompt import add_prompt_flags, encode_prompt, prompt_from_flags
from powerserve.cli.speculation_flags import add_speculation_flags, show_trees, with_draft

if TYPE_CHECKING:
    from powerserve.engine.generation import Completion, TextGeneration
    from powerserve.llm import LLM
    from powerserve.sampler.params import SamplingParams

DEFAULT_PROMPT = "Once upon a time"
DEFAULT_NUM_TOKENS = 16
END_OF_TEXT = "[end of text]"


def configure(parser: ArgumentParser) -> None:
    """Declare the flags of the original's three programs, and ours beside them."""
    add_prompt_flags(parser)
    parser.add_argument(
        "-n", "--n-predicts", type=options.whole_number, default=DEFAULT_NUM_TOKENS, metavar="N"
    )
    parser.add_argument("--host", default="127.0.0.1", help="accepted for the server's sake")
    parser.add_argument("--port", type=options.whole_number, default=8080)
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    options.add_sampling_flags(parser)
    add_speculation_flags(parser)


def execute(arguments: Namespace) -> int:
    """Run the program."""
    from powerserve.cli.interrupt import interruptible
    from powerserve.cli.speed_dump import dump_speed
    from powerserve.cli.statistics import info, speculation_lines, speed_lines
    from powerserve.llm import DEFAULT_MODEL, LLM

    prompt = prompt_from_flags(arguments)
    prompt = DEFAULT_PROMPT if prompt is None else prompt
    source = with_draft(arguments, options.find_model(arguments, DEFAULT_MODEL))
    params = options.sampling_params(arguments, source.hparams, arguments.n_predicts)
    with LLM(source, options.load_options(arguments, source.hparams)) as llm:
        generation = _start(llm, arguments, prompt, params)
        show_trees(arguments, llm)
        with interruptible(llm.loaded.backend):
            completion = _print_text(llm, generation)
        if completion.token_ids:
            for line in speed_lines(completion):
                info(line, sys.stdout)
        counters = completion.speculation if arguments.use_spec or arguments.spec else None
        if counters is not None:
            print("\n".join(speculation_lines(counters)))
        dump_speed(completion, counters)
    return 0


def _start(llm: LLM, arguments: Namespace, prompt: str, params: SamplingParams) -> TextGeneration:
    """Begin the generation, with the original's lines about it.

    Platform, attention and tokenizer are no separate stages here: they are part of the model's.
    """
    from powerserve.cli.statistics import info, memory_line, prompt_line

    info(memory_line("model"), sys.stdout)
    seed = secrets.randbits(32) if params.seed is None else params.seed
    token_ids = encode_prompt(llm.loaded.tokenizer, prompt)
    generation = llm.start(token_ids, params.replace(seed=seed))
    for line in (
        f"seed: {seed}",
        memory_line("sampler"),
        prompt_line(prompt),
        f"n_predicts  : {arguments.n_predicts}",
        f"model arch  : {llm.loaded.config.architecture}",
        f"n_threads   : {llm.loaded.num_threads}",
        f"batch_size   : {llm.loaded.engine.config.batch_size}",
    ):
        info(line, sys.stdout)
    return generation


def _print_text(llm: LLM, generation: TextGeneration) -> Completion:
    """Echo the prompt, without its control tokens, and print the answer as it comes."""
    from powerserve.cli.terminal import TextPrinter

    sequence, tokenizer = generation.sequence, llm.loaded.tokenizer
    printer = TextPrinter(sys.stdout)
    if sequence.params.max_tokens != 0:
        printer.write(tokenizer.decode(sequence.token_ids))
    for piece in llm.pieces(generation):
        printer.write(piece.text)
    completion = generation.completion()
    printer.write(f"{_ending(llm, completion)}\n")
    return completion


def _ending(llm: LLM, completion: Completion) -> str:
    """The original's mark after a stop token, which BOS and our stop strings do not get."""
    last = completion.token_ids[-1:]
    special = llm.loaded.tokenizer.special
    ended = completion.finish_reason == "stop" and special.stop_ids.intersection(last)
    return END_OF_TEXT if ended and last != [special.bos] else ""
