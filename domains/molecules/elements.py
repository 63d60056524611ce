"""Chemical elements: atomic numbers and symbols."""

from __future__ import annotations

SYMBOLS: tuple[str, ...] = tuple(
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy "
    "Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf "
    "Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og".split()
)
"""Symbols by atomic number; 0 is not an element."""

NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number} | {"D": 1, "T": 1}
"""Atomic numbers by symbol; D and T map to hydrogen."""


def number_of(word: str) -> int | None:
    """Atomic number of a symbol or number such as ``C``, ``CL``, ``6``; None if not an element.

    >>> [number_of(word) for word in ("C", "CL", "br", "6", "Q")]
    [6, 17, 35, 6, None]
    """
    if word.isdecimal():
        return int(word) if 0 < int(word) < len(SYMBOLS) else None
    return NUMBERS.get(word.capitalize())
