"""Amino acids: three-letter names and one-letter codes."""

from __future__ import annotations

from functools import cache

THREE = {
    "A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS", "I": "ILE",
    "K": "LYS", "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN", "R": "ARG", "S": "SER",
    "T": "THR", "V": "VAL", "W": "TRP", "Y": "TYR", "X": "UNK",
}  # fmt: skip
LETTERS = "".join(THREE)  # X (unknown) is last
ATOMS = ("N", "CA", "C", "O")

# names of protonation states and bridges in force fields that biotite does not know
FORCE_FIELDS = {
    "HSD": "H", "HSE": "H", "HSP": "H", "HID": "H", "HIE": "H", "HIP": "H", "HISA": "H",
    "HISB": "H", "HISD": "H", "HISE": "H", "HISH": "H", "HIS1": "H", "HIS2": "H", "CYX": "C",
    "CYM": "C", "CYS1": "C", "CYS2": "C", "CYSH": "C", "ASH": "D", "ASPH": "D", "ASPP": "D",
    "GLH": "E", "GLUH": "E", "GLUP": "E", "LYN": "K", "LYSH": "K", "LSN": "K", "ARGN": "R",
}  # fmt: skip


@cache
def letter(name: str) -> str | None:
    """One-letter code of a residue name; of the parent if it is modified.

    Returns:
        ``"X"`` for an amino acid without a code; None if it is not a known amino acid.
    """
    from biotite.structure import info

    if name in FORCE_FIELDS:
        return FORCE_FIELDS[name]
    if name not in _amino_acids():
        return None
    code = info.one_letter_code(name)
    return code if code is not None and code in LETTERS else "X"


@cache
def _amino_acids() -> frozenset[str]:
    from biotite.structure import info

    return frozenset(info.amino_acid_names())
