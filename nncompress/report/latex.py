"""Any text as LaTeX prints it, whatever it holds: in ASCII, without packages."""

import re
import unicodedata
from functools import lru_cache
from typing import Any

OBEYED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", '"': r"\char34{}",
    "`": "{}`", "'": "{}'", "-": "{}-", "–": "--", "…": r"\ldots{}", "ß": r"\ss{}", "Ł": r"\L{}", "ł": r"\l{}",
    "Ø": r"\O{}", "ø": r"\o{}", "Æ": r"\AE{}", "æ": r"\ae{}", "Œ": r"\OE{}", "œ": r"\oe{}",
}  # fmt: skip
"""Characters that are commands, that would be printed as one with what is before them, or that are no letter."""
SYMBOLS = {
    "×": r"\times", "±": r"\pm", "½": r"\frac12", "≤": r"\leq", "≥": r"\geq", "≈": r"\approx", "−": "-", "‖": r"\|",
    "→": r"\rightarrow", "∇": r"\nabla", "∞": r"\infty", "⟨": r"\langle", "⟩": r"\rangle", "∈": r"\in", "·": r"\cdot",
    "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda", "Ξ": r"\Xi", "Π": r"\Pi", "Σ": r"\Sigma",
    "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta",
    "ε": r"\varepsilon", "ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "ι": r"\iota", "κ": r"\kappa", "λ": r"\lambda",
    "μ": r"\mu", "ν": r"\nu", "ξ": r"\xi", "ο": "o", "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "ς": r"\varsigma",
    "τ": r"\tau", "υ": r"\upsilon", "φ": r"\varphi", "χ": r"\chi", "ψ": r"\psi", "ω": r"\omega",
}  # fmt: skip
"""Characters of mathematics."""
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
RAISED = {"<super>": "^", "<sub>": "_"}
SPECIAL = re.compile(r"(?<=-)-|(?<=')'|[^A-Za-z0-9 .,;:()=+*/?!@\[\]'-]")


def escape(text: Any) -> str:
    """Return text that LaTeX prints as it is; a character that it has not by its number, as U+4F60."""
    return SPECIAL.sub(lambda match: _printed(match.group()), str(text))


@lru_cache(maxsize=1024)
def _printed(character: str) -> str:
    if character in OBEYED:
        return OBEYED[character]
    if character in SYMBOLS:
        return f"${SYMBOLS[character]}$"
    kind, _, plain = unicodedata.decomposition(character).rpartition(" ")
    base = chr(int(plain, 16)) if plain else ""
    if kind in RAISED and (base.isascii() or base in SYMBOLS):
        return f"${RAISED[kind]}{{{SYMBOLS.get(base, base)}}}$"
    letter = unicodedata.normalize("NFD", character)
    if len(letter) == 2 and letter[0].isascii() and letter[1] in ACCENTS:
        return rf"\{ACCENTS[letter[1]]}{{{letter[0]}}}"
    return f"U+{ord(character):04X}"
