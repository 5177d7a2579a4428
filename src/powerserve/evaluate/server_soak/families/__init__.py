"""The same question in every API family, and how an answer is read: one file each."""

from powerserve.evaluate.server_soak.families import anthropic, ollama, openai, responses
from powerserve.evaluate.server_soak.families.base import Answer, Family, Wish, WrongAnswer

FAMILIES = (
    openai.CHAT,
    openai.COMPLETIONS,
    responses.RESPONSES,
    anthropic.MESSAGES,
    ollama.CHAT,
    ollama.GENERATE,
)

__all__ = ["FAMILIES", "Answer", "Family", "Wish", "WrongAnswer"]
