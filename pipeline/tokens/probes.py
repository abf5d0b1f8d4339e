"""What a tokenizer is tried on before it is used: texts that two encoders of it must agree on, and
the same text twice.

The texts aim at where BPE encoders have differed: added tokens and their neighbourhood, white space
that a look-ahead splits, digits, Unicode tables of another version, normalisation, one match
longer than the chunk a parallel scanner works on, and what was encoded just before.

`tokenizers` applies BPE dropout and Unigram sampling whenever they are set, at inference too, and
neither transformers nor a server switches them off (transformers 5, ``AutoTokenizer``; vLLM 0.33.0,
``vllm/tokenizers/hf.py``). The served prompt of such a tokenizer is another at each request, so
there are no ids to reproduce.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from tokenizers import Tokenizer

from pipeline.errors import UsageError, excerpt_of

_SAMPLERS: Final = ("dropout", "alpha")  # of BPE, of Unigram (`tokenizers` 0.23)
_TEXTS: Final = 20
_CHARACTERS: Final = 1_000
_ADDED_TOKENS: Final = 400  # of the thousands that some tokenizers hold, evenly spread

SENTENCES: Final = (
    "",
    " ",
    "I'll say we've DON'T, it'S 3,141.59 or 2+2=4; 'tis 100% ok… (yes?) -- \"no\"!",
    "a  b   c    d\te\t\tf \n g\n\nh \r\n\r\n i\r\rj\u00a0k\u2003l\u3000m\u200bn\ufeffo\u2028p\u0085q",
    "\n\n\n   x\n \n\t\n  ",
    "0 1 12 123 1234 12345 123456 1234567 ١٢٣٤ १२३४ Ⅷ ½ ²³ 𝟘𝟙",
    "def f(x: int) -> str:\n    return f'{x!r:>8}'  # ok\n\n\n\nclass A:\n\tpass\n",
    '{"a": [1, -2.5e+10, null, true], "b": "\\u00e9\\n"}</s><br/>&amp;http://x.y/z?q=%20#t',
    "Grüße, naïve façade, œuvre, Ærøskøbing, İstanbul ıI, ſtraße ẞ, Đà Nẵng, Łódź",
    "Съешь ещё этих мягких французских булок. Ґанок їжак. Ελληνικά ΐ ά. Հայերեն. ქართული.",
    "שלום עולם, מה שלומך? مرحبا بالعالم، كيف حالك؟ گفتگو ۱۲۳ ﷺ ܫܠܡܐ ދިވެހި",
    "नमस्ते दुनिया क्षत्रिय। বাংলা ভাষা। தமிழ் மொழி. తెలుగు ಕನ್ನಡ മലയാളം සිංහල ไทยภาษา ລາວ ខ្មែរ မြန်မာ བོད་",
    "你好，世界！漢字かな交じり文、カタカナ。ﾊﾝｶｸ ｱｲｳ 한국어 조선말 \u1112\u1161\u11ab 𠮷野家 ㍿ ㈱",
    "🙂🙃👍🏽👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈🇩🇪🇫🇷 1️⃣ ♥️ ☃ \U0001fae8 \U0001f6dc",
    "e\u0301 é a\u0323\u0302 a\u0302\u0323 ệ q\u0307\u0323 Å Å \u1e9b\u0323 ﬁ ﬀ ① \u0344 \u0958 \u2126",
    ">\u0338 =\u0338 \u0301x",
    # Combining marks whose class came with later Unicode versions: NFC tables of two ages differ.
    "e\u1aeb\u0301 e\u1df6\u0301 e\U0001e4ec\u0301 e\U0001e4ed\u0301 a\u1acf\u0327 o\u0897\u0301",
    "\x00\x01\x02\x1b[31mred\x1b[0m\x7f\x80\x9f\xad\u200e\u202e\ufffd\uffff\U0010ffff\U000f0000\ue000",
    "▁a ▁▁b Ġc Ċd <0x0A> Ã© â€œ ##ing Ä\u0120",
)
_STRANGE_RUNS: Final = (
    " ",
    "\n",
    "\t",
    " \n",
    "x",
    "!",
    "7",
    "é",
    "e\u0301",
    "あ",
    "🙂",
    "'s",
    "\u00a0",
)


def make_probes(added_tokens: Sequence[str]) -> list[str]:
    """Return the texts: some 150 kB, of which each added token adds about 80 characters.

    >>> any("<end>" in text for text in make_probes(["<end>"]))
    True
    """
    return [
        *SENTENCES,
        *_code_points(),
        *_long_runs(),
        *_shared_prefixes(),
        *_added_token_probes(added_tokens),
    ]


def _code_points() -> Iterator[str]:
    """Yield every 13th code point of the planes in use, after a letter, a space and a digit."""
    for start in (*range(0x20, 0xD800, 0x1000), *range(0xE000, 0x20000, 0x2000)):
        points = map(chr, range(start, min(start + 0x2000, 0x20000), 13))
        kept = [point for point in points if not "\ud800" <= point <= "\udfff"]
        yield "".join(f"{point}a {point}1" for point in kept[::2]) + "".join(kept[1::2])


def _long_runs() -> Iterator[str]:
    """Yield runs that lie across the places where a scanner may cut a text of 16 KiB and more."""
    for run in _STRANGE_RUNS:
        yield run * 700
    words = "The quick brown fox, 12 dogs.\n" * 100
    for run in (" ", "x", "\n"):
        yield words + run * 12_000 + words


def _shared_prefixes() -> Iterator[str]:
    """Yield texts that go on as the one before did for more than 4 KiB, then differ at once."""
    start = "A prefix of words, 34 of them.\n" * 140 + " " * 700
    for end in ("x and more", " ", "x and", "\n", "y", "\tx", "  ", "\n\nx", "1"):
        yield start + end


def _added_token_probes(added_tokens: Sequence[str]) -> Iterator[str]:
    stride = max(1, len(added_tokens) // _ADDED_TOKENS)
    for token in added_tokens[::stride]:
        yield f"a{token}b {token} {token}{token}\n{token}\n\n{token[1:]}{token[:-1]} {token.upper()}é"
    yield "x".join(added_tokens)


def refuse_random_ids(backend: Tokenizer) -> None:
    """Refuse a tokenizer that samples. Raises `UsageError` with the field that says so."""
    for name in _SAMPLERS:
        value = getattr(backend.model, name, None)
        if value:
            raise UsageError(
                f"tokenizer: model.{name} is {value:g}, so it draws its ids at random, here and on a "
                f"server; expected the same ids at each run: set model.{name} to null in "
                "tokenizer.json, where the server has it too"
            )
    refuse_other_ids(backend, SENTENCES)


def refuse_other_ids(backend: Tokenizer, texts: Iterable[str]) -> None:
    """Encode the first texts twice. Raises `UsageError` where one has other ids the second time."""
    sample = [text[:_CHARACTERS] for text in islice(texts, _TEXTS)]
    first, second = _encode(backend, sample), _encode(backend, sample)
    for text, before, after in zip(sample, first, second, strict=True):
        if before != after:
            raise UsageError(
                f"tokenizer: {excerpt_of(text)} has other ids when it is encoded again; expected a "
                "tokenizer that gives the same ids at each run"
            )


def _encode(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
