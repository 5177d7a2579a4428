"""The chat templates of a checkpoint, wherever transformers looks for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from powerserve.convert.vocabulary.files import TokenizerFiles, optional_json
from powerserve.core.errors import ConfigError

_KEY = "tokenizer.chat_template"
_DEFAULT = "default"


def chat_template_metadata(files: TokenizerFiles) -> dict[str, object]:
    """The keys of the chat templates; none for a base model.

    As in transformers, files of their own take precedence over tokenizer_config.json.
    """
    templates = _in_files(files.folder) or _named(files.config.get("chat_template"))
    keys: dict[str, object] = {}
    others = sorted(templates.keys() - {_DEFAULT})
    if _DEFAULT in templates:
        keys[_KEY] = templates[_DEFAULT]
    for name in others:
        keys[f"{_KEY}.{name}"] = templates[name]
    if others:
        keys["tokenizer.chat_templates"] = others
    return keys


def _in_files(folder: Path) -> dict[str, str]:
    main = folder / "chat_template.jinja"
    if main.is_file():
        others = (folder / "additional_chat_templates").glob("*.jinja")
        templates = {_key_name(path.stem): _read(path) for path in others}
        return {**templates, _DEFAULT: _read(main)}
    return _named(optional_json(folder / "chat_template.json").get("chat_template"))


def _named(value: Any) -> dict[str, str]:
    """Templates by name, from one text or from a list of names and texts."""
    match value:
        case None:
            return {}
        case str(text):
            return {_DEFAULT: text} if text else {}
        case list(items) if all(map(_is_named_template, items)):
            return {_key_name(item["name"]): item["template"] for item in items}
    raise ConfigError("the chat_template is neither a text nor a list of texts with names")


def _is_named_template(item: Any) -> bool:
    match item:
        case {"name": str(), "template": str()}:
            return True
    return False


def _key_name(name: str) -> str:
    """A name that can be part of a metadata key."""
    return re.sub("[^A-Za-z0-9]", "_", name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
