"""What RDKit knows of a molecule: its bonds from where its atoms are, and its name from them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from jitkit.domains.molecules.molecule import Molecule
from jitkit.errors import DataError

if TYPE_CHECKING:
    from rdkit.Chem import Mol

TRIES = 2_000  # ways to order bonds that are looked at; a molecule of QM9 takes a few


def has_rdkit() -> bool:
    """Whether RDKit is installed."""
    return find_spec("rdkit") is not None


def check_rdkit(what: str) -> None:
    """Whether RDKit is there for what is asked.

    Raises:
        DataError: it is not installed.
    """
    if not has_rdkit():
        raise DataError(f"{what} needs RDKit, which is not installed: pip install "
                        "'jitkit[molecules]'")  # fmt: skip


def perceived(molecule: Molecule) -> Mol | None:
    """The molecule with bonds as its distances give them, or None where no bonds make sense.

    Bonds are those of RDKit's `rdDetermineBonds` (Kim & Kim 2015, doi:10.1002/bkcs.10334) for the
    sum of the formal charges, and RDKit can sanitize the result. Atoms keep their order.
    """
    if "perceived" not in molecule.kept:
        molecule.kept["perceived"] = _perceived(molecule)
    return molecule.kept["perceived"]


def _perceived(molecule: Molecule) -> Mol | None:
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdDetermineBonds import DetermineBonds

    made = unbonded(molecule)
    with rdBase.BlockLogs():
        try:
            DetermineBonds(made, charge=int(molecule.charges.sum()), maxIterations=TRIES)
            Chem.SanitizeMol(made)
        except (ValueError, RuntimeError):  # no bonds, wrong valences, too many ways
            return None
    return made if _makes_sense(made, molecule) else None


def _makes_sense(made: Mol, molecule: Molecule) -> bool:
    """Whether charges are small and no hydrogen stands alone: RDKit pays for a missing bond with
    bare protons and carbons of charge -3."""
    most = max(1, int(np.abs(molecule.charges).max(initial=0)))
    atoms = list(made.GetAtoms())
    alone = any(atom.GetAtomicNum() == 1 and not atom.GetDegree() for atom in atoms)
    return all(abs(atom.GetFormalCharge()) <= most for atom in atoms) and not alone


def unbonded(molecule: Molecule) -> Mol:
    """The atoms where they are, without bonds, for RDKit."""
    from rdkit.Chem import Atom, Conformer, RWMol

    made, places = RWMol(), Conformer(len(molecule))
    for i, number in enumerate(molecule.numbers.tolist()):
        made.AddAtom(Atom(number))
        places.SetAtomPosition(i, molecule.positions[i].tolist())
    made.AddConformer(places)
    return made


def is_valid(molecule: Molecule) -> bool:
    """Whether its bonds can be told, and hold it together in one piece."""
    from rdkit.Chem import GetMolFrags

    made = perceived(molecule)
    return made is not None and len(GetMolFrags(made)) == 1


def smiles(molecule: Molecule) -> str | None:
    """Canonical SMILES without hydrogens and stereochemistry; None where it is not valid."""
    if "smiles" not in molecule.kept:
        made = perceived(molecule)
        molecule.kept["smiles"] = _smiles(made) if made is not None and is_valid(molecule) else None
    return molecule.kept["smiles"]


def written_smiles(molecule: Molecule) -> str | None:
    """The same of a molecule of a file, by the SMILES that the file has, where it has any."""
    from rdkit import rdBase
    from rdkit.Chem import MolFromSmiles

    if molecule.smiles is None:
        return smiles(molecule)
    with rdBase.BlockLogs():
        made = MolFromSmiles(molecule.smiles)
    return smiles(molecule) if made is None else _smiles(made)


def _smiles(made: Mol) -> str:
    from rdkit import rdBase
    from rdkit.Chem import MolToSmiles, RemoveAllHs

    with rdBase.BlockLogs():
        return str(MolToSmiles(RemoveAllHs(made), isomericSmiles=False))
