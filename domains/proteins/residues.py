"""Names of amino acids, in three letters and in one."""

from __future__ import annotations

from functools import cache

THREE = {
    "A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS", "I": "ILE",
    "K": "LYS", "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN", "R": "ARG", "S": "SER",
    "T": "THR", "V": "VAL", "W": "TRP", "Y": "TYR", "X": "UNK",
}  # fmt: skip
LETTERS = "".join(THREE)  # X, any other, comes last
ATOMS = ("N", "CA", "C", "O")

# names that force fields give to protonation states and bridges, and that the dictionary lacks
FORCE_FIELDS = {
    "HSD": "H", "HSE": "H", "HSP": "H", "HID": "H", "HIE": "H", "HIP": "H", "HISA": "H",
    "HISB": "H", "HISD": "H", "HISE": "H", "HISH": "H", "HIS1": "H", "HIS2": "H", "CYX": "C",
    "CYM": "C", "CYS1": "C", "CYS2": "C", "CYSH": "C", "ASH": "D", "ASPH": "D", "ASPP": "D",
    "GLH": "E", "GLUH": "E", "GLUP": "E", "LYN": "K", "LYSH": "K", "LSN": "K", "ARGN": "R",
}  # fmt: skip


@cache
def letter(name: str) -> str | None:
    """The letter of a residue's name, that of its parent where it is modified.

    Returns:
        ``"X"`` for an amino acid without a letter; None for what is no amino acid that we know.
    """
    from biotite.structure import info

    if name in FORCE_FIELDS:
        return FORCE_FIELDS[name]
    if name not in _amino_acids():
        return None
    found = info.one_letter_code(name)
    return found if found is not None and found in LETTERS else "X"


@cache
def _amino_acids() -> frozenset[str]:
    from biotite.structure import info

    return frozenset(info.amino_acid_names())
