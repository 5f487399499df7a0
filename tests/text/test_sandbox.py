"""Hostile templates: none runs anything, takes long, or builds much; the idioms of real templates work."""

from __future__ import annotations

import resource
import sys
import time

import pytest

from bloomery.errors import UsageError
from bloomery.text.chat import Chat
from bloomery.text.sandbox import compile_template
from bloomery.text.tokenizer import Tokenizer

DOUBLE = "{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"
ATTACKS = {
    "class walk": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% for i in 'x' * 9999 %}{% for j in 'x' * 9999 %}{% endfor %}{% endfor %}",
    "long range": "{{ range(10**9) | list }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "repeat": "{{ 'x' * 1000000000 }}",
    "repeat a list": "{{ [0] * 1000000000 }}",
    "repeat twice": "{{ ('x' * 90000) * 90000 }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format method": "{{ '{:1000000000d}'.format(1) }}",
    "center": "{{ 'x' | center(1000000000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "indent": "{{ 'x\\ny' | indent(1000000000) }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "double by ~": DOUBLE.replace("STEP", "ns.s ~ ns.s"),
    "double by +": DOUBLE.replace("STEP", "ns.s + ns.s"),
    "double by replace": DOUBLE.replace("STEP", "ns.s.replace('a', 'aa').replace('b', 'bb')"),
    "double by filter": DOUBLE.replace("STEP", "ns.s | replace('a', 'aa') | replace('b', 'bb')"),
    "double by join": DOUBLE.replace("STEP", "[ns.s, ns.s] | join"),
    "double by list": DOUBLE.replace("'ab'", "[1]").replace("STEP", "ns.s + ns.s"),
    "output in a loop": "{% set s = 'x' * 90000 %}{% for i in range(90000) %}{{ s }}{% endfor %}",
    "block": "{% set s = 'x' * 90000 %}{% set t %}{% for i in range(9000) %}{{ s }}{% endfor %}{% endset %}",
    "macro tree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "macro forever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long source": "x" * 300_000,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_end_soon_small_and_in_an_error(tokenizer: Tokenizer, name: str) -> None:
    before, start = peak_bytes(), time.process_time()
    with pytest.raises(UsageError):
        Chat(tokenizer, ATTACKS[name])
    assert time.process_time() - start < 1
    assert peak_bytes() - before < 256 * 2**20


def peak_bytes() -> int:
    """The most memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_what_templates_need_works() -> None:
    """The idioms of published templates: trims, slices, namespaces, macros, filters, loop variables."""
    source = """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{%- set ns = namespace(n=0) %}
{%- macro wrap(x) %}<{{ x.strip() }}>{% endmacro %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if loop.first and system is string %}{{ '[' + system + ']' }}{% endif %}
{%- set ns.n = ns.n + 1 %}
{{- wrap(m.content.split('|')[-1]) }}{{ ' ' ~ ns.n ~ (',' if not loop.last else '.') }}
{%- endfor %}
{%- if add_generation_prompt is defined %}{{ {'a': [1, 'é']} | tojson }}{% endif %}"""
    run = compile_template(source)
    messages = [
        {"role": role, "content": content}
        for role, content in [("system", " s "), ("user", "a|b "), ("assistant", "c")]
    ]
    assert run(messages=messages) == "[s]<b> 1,<c> 2."
    assert run(messages=messages[1:], add_generation_prompt=True) == '[]<b> 1,<c> 2.{"a": [1, "é"]}'
    long = [{"role": "user", "content": "x" * 1_000_000}]
    assert len(run(messages=long)) > 1_000_000
    for _ in range(3):  # the budget is for each rendering
        assert run(messages=long).endswith(" 1.")
