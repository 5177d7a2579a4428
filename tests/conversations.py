"""A conversation for tests of chat templates, and where templates of real models are."""

from pathlib import Path

TEMPLATES = Path(__file__).parent / "reference" / "templates"

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]
