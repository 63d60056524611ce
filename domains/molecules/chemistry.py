"""RDKit: bond perception from atom positions, validity, and canonical SMILES."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from jitkit.domains.molecules.molecule import Molecule
from jitkit.errors import DataError

if TYPE_CHECKING:
    from rdkit.Chem import Mol

MAX_ITERATIONS = 2_000  # bond order assignments tried; a QM9 molecule takes a few


def has_rdkit() -> bool:
    """Whether RDKit is installed."""
    return find_spec("rdkit") is not None


def check_rdkit(what: str) -> None:
    """Check that RDKit is installed.

    Raises:
        DataError: it is not installed.
    """
    if not has_rdkit():
        raise DataError(f"{what} needs RDKit, which is not installed: pip install "
                        "'jitkit[molecules]'")  # fmt: skip


def perceive_bonds(molecule: Molecule) -> Mol | None:
    """The molecule with bonds determined from its distances, or None if that fails.

    RDKit's `rdDetermineBonds` (Kim & Kim 2015, doi:10.1002/bkcs.10334) with the sum of the formal
    charges; RDKit can sanitize the result. The order of atoms is kept.
    """
    if "bonds" not in molecule.cache:
        molecule.cache["bonds"] = _perceive_bonds(molecule)
    return molecule.cache["bonds"]


def _perceive_bonds(molecule: Molecule) -> Mol | None:
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdDetermineBonds import DetermineBonds

    mol = without_bonds(molecule)
    with rdBase.BlockLogs():
        try:
            DetermineBonds(mol, charge=int(molecule.charges.sum()), maxIterations=MAX_ITERATIONS)
            Chem.SanitizeMol(mol)
        except (ValueError, RuntimeError):  # no bonds, wrong valences, too many assignments
            return None
    return mol if _is_plausible(mol, molecule) else None


def _is_plausible(mol: Mol, molecule: Molecule) -> bool:
    """Whether charges are small and no hydrogen is isolated: for a missing bond RDKit assigns bare
    protons and carbons of charge -3."""
    max_charge = max(1, int(np.abs(molecule.charges).max(initial=0)))
    atoms = list(mol.GetAtoms())
    isolated = any(atom.GetAtomicNum() == 1 and not atom.GetDegree() for atom in atoms)
    return all(abs(atom.GetFormalCharge()) <= max_charge for atom in atoms) and not isolated


def without_bonds(molecule: Molecule) -> Mol:
    """RDKit molecule of the atoms and their positions, without bonds."""
    from rdkit.Chem import Atom, Conformer, RWMol

    mol, conformer = RWMol(), Conformer(len(molecule))
    for i, number in enumerate(molecule.numbers.tolist()):
        mol.AddAtom(Atom(number))
        conformer.SetAtomPosition(i, molecule.positions[i].tolist())
    mol.AddConformer(conformer)
    return mol


def is_valid(molecule: Molecule) -> bool:
    """Whether its bonds can be determined and connect all atoms."""
    from rdkit.Chem import GetMolFrags

    mol = perceive_bonds(molecule)
    return mol is not None and len(GetMolFrags(mol)) == 1


def canonical_smiles(molecule: Molecule) -> str | None:
    """Canonical SMILES without hydrogens and stereochemistry; None if it is invalid."""
    if "smiles" not in molecule.cache:
        mol = perceive_bonds(molecule)
        molecule.cache["smiles"] = _smiles(mol) if mol is not None and is_valid(molecule) else None
    return molecule.cache["smiles"]


def smiles_from_file(molecule: Molecule) -> str | None:
    """Canonical SMILES from the SMILES in the file if it has one, else from distances."""
    from rdkit import rdBase
    from rdkit.Chem import MolFromSmiles

    if molecule.smiles is None:
        return canonical_smiles(molecule)
    with rdBase.BlockLogs():
        mol = MolFromSmiles(molecule.smiles)
    return canonical_smiles(molecule) if mol is None else _smiles(mol)


def _smiles(mol: Mol) -> str:
    from rdkit import rdBase
    from rdkit.Chem import MolToSmiles, RemoveAllHs

    with rdBase.BlockLogs():
        return str(MolToSmiles(RemoveAllHs(mol), isomericSmiles=False))
