"""Code points that a reader does not see, left out where texts are compared.

Soft hyphens, zero-width spaces and joiners, variation selectors, marks of writing direction and their like: pages and
PDFs are full of them, and a text that differs in nothing else is the same text. These are the code points with the
property Default_Ignorable_Code_Point (Unicode 16.0, DerivedCoreProperties.txt), which Unicode's own folding for
comparisons (NFKC_Casefold) removes, too.
"""

from __future__ import annotations

import re

DEFAULT_IGNORABLE = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
"""First and last code point of each range."""
_RUNS = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in DEFAULT_IGNORABLE) + "]+")


def without_ignorable(text: str) -> str:
    """The text without default-ignorable code points. ASCII has none of them."""
    return text if text.isascii() else _RUNS.sub("", text)
