"""Expressions that take time or memory without end, each by another operation of Jinja or Python.

``x`` is one character of a message, which no compiler can work out in advance.
"""

from __future__ import annotations

_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
_ENDS = "{% endfor %}" * 3
_BIG = "{% set big = x * 1000000 %}"


def _grow(first: str, step: str, times: int = 60) -> str:
    """Return a loop in which ``n.s`` becomes ``step`` over and over."""
    loop = f"{{% for i in range({times}) %}}{{% set n.s = {step} %}}{{% endfor %}}"
    return f"{{% set n = namespace(s={first}) %}}{loop}{{{{ n.s|length }}}}"


BOMBS = {
    "nested loops": f"{_LOOPS}{{% set d = a %}}{_ENDS}",
    "loops that write": f"{_LOOPS}{{{{ x * 1000 }}}}{_ENDS}",
    "a loop inside a set block": f"{{% set y %}}{_LOOPS}{{{{ x * 100000 }}}}{_ENDS}{{% endset %}}",
    "a recursive loop": "{% for a in range(99999) recursive %}{% if loop.depth < 9 %}"
    "{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(60) }}",
    "a call block": "{% macro m() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}"
    f"{{% endmacro %}}{{% call m() %}}{_LOOPS}{_ENDS}{{% endcall %}}",
    "doubling by ~": _grow("x", "n.s ~ n.s"),
    "doubling by +": _grow("x", "n.s + n.s"),
    "doubling of lists": _grow("[x]", "n.s + n.s"),
    "escaping over and over": _grow("'<' * 9999", "n.s|forceescape|string", 99999),
    "texts joined in a list": _grow("[x]", "[n.s|join(n.s|join), n.s|join(n.s|join)]"),
    "numbers squared": "{% set n = namespace(s=x|length + 2) %}{% for i in range(60) %}"
    "{% set n.s = n.s * n.s %}{% endfor %}{{ n.s % 7 }}",
    "a tower of powers": "{{ (x|length + 8) ** (9 ** 9) ** 9 }}",
    "a modulo of a power": "{{ (x|length + 8) ** 99999999 % 7 }}",
    "a product of texts": "{{ x * 10 ** 12 }}",
    "a product of lists": "{{ ([x] * 10 ** 10)|length }}",
    "a rounding": "{{ x|length|round(1000000000, 'ceil') }}",
    "a width by star": "{{ ('%*d' % (2000000000, x|length))|length }}",
    "a width in the format": "{{ ('%2000000000d' % x|length)|length }}",
    "a width by the filter": "{{ ('%' ~ 2000000000 ~ 'd')|format(x|length) }}",
    "a nested width": "{{ '{:{w}}'.format(x, w='2000000000')|length }}",
    "a method that pads": "{{ x.ljust(10 ** 12) }}",
    "a filter that pads": "{{ x|center(10 ** 12) }}",
    "an indent": "{{ (x ~ '\n' ~ x)|indent(10 ** 12) }}",
    "an indent of JSON": "{{ [[x, [x]]]|tojson(indent=2000000000)|length }}",
    "zeros": "{{ x.zfill(2000000000)|length }}",
    "tabs": _BIG + "{{ ('\t' * 1000).expandtabs(big|length * 10)|length }}",
    "a translation": _BIG + "{{ big.translate({97: 'y' * 20000})|length }}",
    "a replacement by the filter": _BIG + "{{ big|replace(x, 'y' * 20000)|length }}",
    "a replacement by the method": _BIG + "{{ big.replace(x, 'y' * 20000)|length }}",
    "a join by the method": _BIG + "{{ ('y' * 20000).join(big)|length }}",
    "a join by the filter": _BIG + "{{ big|join('y' * 20000)|length }}",
    "lines wrapped": _BIG + "{{ big|wordwrap(1, True, 'y' * 20000)|length }}",
    "slices": "{{ x|slice(2000000000)|list|length }}",
    "batches": "{{ x|batch(2000000000, x)|list|length }}",
    "a sum of lists": "{{ ([range(1000)|list] * 99999)|sum(start=[])|length }}",
    "words without sense": "{{ lipsum(n=x|length * 10000000)|length }}",
    "links": _BIG + "{{ (('http://' ~ x) * 9999999)|urlize|length }}",
    "bytes of a number": "{{ (x|length).to_bytes(20000000000, 'big')|length }}",
    "a list in itself": _grow("[x]", "[n.s, n.s]") + "{{ n.s|string|length }}",
    "a comparison": "{% set n = namespace(s=[x], t=[x]) %}{% for i in range(60) %}"
    "{% set n.s = [n.s, n.s] %}{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.s == n.t }}",
    "tuples in tuples": "{% set n = namespace(s=(x,)) %}{% for i in range(99999) %}"
    "{% for j in range(99) %}{% set n.s = (n.s,) %}{% endfor %}{% endfor %}{{ {n.s: 1}|length }}",
    "a search in a list": "{% for i in range(99999) %}{{ -1 in range(99999)|list }}{% endfor %}",
    "an order": "{% for i in range(99999) %}{{ (range(99999)|sort(reverse=true))[:1] }}{% endfor %}",
    "a format of a day": "{{ strftime_now('%Y' * 10 ** 10) }}",
    "an error": "{{ raise_exception(x * 3000000000) }}",
}
"""By the operation."""

CONSTANTS = {
    "a rounding": "{{ 1|round(1000000000, 'ceil') }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
}
"""What jinja2 works out while it compiles."""


def bomb_template(bombs: dict[str, str], rest: str) -> str:
    """Return a template that does what the first message asks for by name, and else ``rest``."""
    branches = (
        f"{{% if messages[0].content == '{name}' %}}{source}{{% endif %}}"
        for name, source in bombs.items()
    )
    return "{% set x = messages[0].content[:1] %}" + "".join(branches) + rest
