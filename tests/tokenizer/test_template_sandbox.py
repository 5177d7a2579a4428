"""Hostile chat templates: no way out, and no way to use up time or memory."""

import threading

import pytest

from powerserve.core import machine
from powerserve.core.errors import TemplateError
from powerserve.tokenizer import ChatTemplate, Tokenizer
from small_tokenizers import byte_pair_metadata

TIME_LIMIT_S = 0.3
_GROW = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}STEP{% endfor %}"
_LONG = "{% set x = 'a' * 1000000 %}"
_LIST = "{% set w = ['a'] * 100000 %}"

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.func }}",
    "{{ strftime_now.args[0] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.mro() }}",
    "{{ dict.fromkeys('ab') }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ range.__self__ }}",
    "{{ ''.format.__self__ }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ [''] | map(attribute='__class__') | first }}",
    "{{ '' | attr('__class__') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{{ messages[0].clear() }}",
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ ''.encode() }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller.__call__.__func__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% import 'os' as os %}",
]

BOMBS = {
    "product": "{{ 'a' * 1000000000 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "format": "{{ '%99999999d' % 1 }}",
    "format with a star": "{{ '%*d' % (999999999, 1) }}",
    "format with a name": "{{ '%(a(b)c)99999999d' % {'a(b)c': 1} }}",
    "date": "{{ strftime_now('%999999999d') }}",
    "centre": "{{ 'a'.center(999999999) }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loop length": "{% for a in range(9999) %}{% for b in range(99999) %}{{ loop.length }}"
    "{% endfor %}{% endfor %}",
    "range": "{{ range(1000000000) | list | length }}",
    "doubled text": _GROW.replace("STEP", "{% set ns.x = ns.x ~ ns.x %}"),
    "doubled sum": _GROW.replace("STEP", "{% set ns.x = ns.x + ns.x %}"),
    "doubled block": _GROW.replace(
        "STEP", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"
    ),
    "doubled list": _GROW.replace("STEP", "{% set ns.x = [ns.x, ns.x] %}") + "{{ ns.x }}",
    "doubled tuple": _GROW.replace("STEP", "{% set ns.x = (ns.x, ns.x) %}") + "{{ ns.x }}",
    "doubled dict": _GROW.replace("STEP", "{% set ns.x = {1: ns.x, 2: ns.x} %}")
    + "{{ ns.x | tojson }}",
    "doubled call": _GROW.replace("STEP", "{% set ns.x = dict(a=ns.x, b=ns.x) %}")
    + "{{ ns.x | string }}",
    "doubled arguments": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% else %}"
    "{{ varargs }}{% endif %}{% endmacro %}{{ m(50, 1, 2) }}",
    "macro tree": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "replace filter": _LONG + "{{ x | replace('a', x) | length }}",
    "replace method": _LONG + "{{ x.replace('a', x) | length }}",
    "join filter": _LONG + "{{ range(99999) | join(x) | length }}",
    "join method": _LONG + "{{ x.join(x) | length }}",
    "indent": "{% set x = '\\n' * 1000000 %}{{ x | indent(1000000000) }}",
    "big number": "{{ ('f' * 4000000) | int(base=16) % 12345 }}",
    "mapped default": _LIST + "{{ ([0] * 99999) | map('default', w, true) | list }}",
    "mapped lists": "{{ [range(99999)] * 400 | map('list') | list | length }}",
    "mapped text": _LONG + "{{ ([x] * 4) | map('replace', 'a', 'bb') | list | length }}",
    "slices": _LONG + "{% set y = x[::-1] %}" * 2000,
    "comparisons": "{% set x = 'a' * 4000000 %}{% set y = 'a' * 3999999 + 'a' %}"
    + "{% if x == y %}{% endif %}" * 4000,
    "strip": "{% set x = 'a' * 1000000 %}{{ x.strip('b' * 1000000 ~ 'a') }}",
    "trim": "{% set x = 'a' * 1000000 %}{{ x | trim('b' * 1000000 ~ 'a') }}",
    "sort by a long path": "{{ (['a'] * 99999) | sort(attribute='0.' * 1000000 ~ '0') | length }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nesting": "{% for a in [1] %}" * 2000 + "{% endfor %}" * 2000,
    "sum of many": "{{ " + "+".join(["1"] * 20000) + " }}",
}


def _render(source: str) -> str:
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata())
    template = ChatTemplate(source, tokenizer, time_limit_s=TIME_LIMIT_S)
    return template.render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("source", ESCAPES)
def test_there_is_no_way_out(source: str) -> None:
    try:
        output = _render(source)
    except TemplateError:
        return
    assert output == "", "what is forbidden is undefined, and prints as nothing"


@pytest.mark.timeout(60)  # by themselves they would take hours
@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_ends_soon_and_stays_small(source: str) -> None:
    memory_bytes = machine.peak_memory()
    with pytest.raises(TemplateError):
        _render(source)
    assert machine.peak_memory() - memory_bytes < 400 << 20


def test_a_namespace_does_not_print_what_it_holds() -> None:
    nested = _GROW.replace("STEP", "{% set ns.x = namespace(a=ns.x, b=ns.x) %}")
    assert _render(nested + "{{ ns.x }}{{ [ns.x] }}{{ ns.x ~ '' }}").count("<namespace>") == 3


def test_a_long_conversation_is_well_within_the_limits() -> None:
    """A template that goes over all messages for each message, and adds up its own text."""
    source = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
        "{% set rest = messages[loop.index:] %}"
        "{% set ns.text = ns.text ~ m.content ~ users | length ~ rest | length %}"
        "{% endfor %}{{ ns.text }}"
    )
    messages = [{"role": "user", "content": "x" * 1000}] * 500
    template = ChatTemplate(source, Tokenizer.from_metadata(byte_pair_metadata()))
    assert len(template.render(messages)) > 500_000


def test_threads_share_a_template() -> None:
    template = ChatTemplate.by_name("gemma", Tokenizer.from_metadata(byte_pair_metadata()))
    results: list[str] = []

    def render() -> None:
        for _ in range(50):
            results.append(template.render([{"role": "user", "content": "Hi"}]))

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert len(set(results)) == 1
