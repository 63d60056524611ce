"""Write molecules to SDF and extended XYZ."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from jitkit.domains.molecules.chemistry import has_rdkit, perceive_bonds
from jitkit.domains.molecules.figures import molecule_grid
from jitkit.domains.molecules.molecule import Molecule
from jitkit.utils.console import warn

MAX_IN_FIGURE = 36
BONDS = {True: "perceived", False: "none"}


def write_molecules(items: Iterable[Molecule], path: Path) -> list[Path]:
    """Write ``samples.sdf``, ``samples.xyz`` and ``grid.png`` into a folder; return them.

    A molecule whose bonds cannot be determined is written without bonds; its SDF field ``bonds`` is
    ``none``, and a warning gives the number of such molecules.
    """
    path.mkdir(parents=True, exist_ok=True)
    files = [path / "samples.sdf", path / "samples.xyz"]
    aside = [file.with_suffix(file.suffix + ".partial") for file in files]
    shown, count, without = list[Molecule](), 0, 0
    with_bonds = has_rdkit()
    with ExitStack() as stack:
        sdf, xyz = (stack.enter_context(file.open("w", encoding="utf-8")) for file in aside)
        for item in items:
            name = item.name or f"sample-{count:05}"
            entry = sdf_of(item, name, bonded=with_bonds)
            without += f"\n{BONDS[False]}\n" in entry
            sdf.write(entry)
            xyz.write(xyz_of(item, name))
            shown += [item] if len(shown) < MAX_IN_FIGURE else []
            count += 1
    for before, after in zip(aside, files, strict=True):
        os.replace(before, after)
    if without:
        why = "" if with_bonds else ": RDKit is not installed (pip install 'jitkit[molecules]')"
        warn(f"the bonds of {without} of {count} molecules cannot be determined{why}; they are "
             f"written to {files[0].name} without bonds")  # fmt: skip
    if shown:
        files.append(path / "grid.png")
        molecule_grid(shown).save(files[-1])
    return files


def xyz_of(molecule: Molecule, name: str) -> str:
    """Extended XYZ entry, angstrom, with a column of charges if there are any."""
    charged = bool(molecule.charges.any())
    columns = "species:S:1:pos:R:3" + ":formal_charge:I:1" * charged
    properties = "".join(f" {_key(k)}={v:.9g}" for k, v in molecule.properties.items())
    lines = [str(len(molecule)), f'Properties={columns} name="{name}"{properties} pbc="F F F"']
    atoms = zip(molecule.symbols, molecule.positions, molecule.charges, strict=True)
    for symbol, (x, y, z), charge in atoms:
        lines.append(f"{symbol:2} {x:14.8f} {y:14.8f} {z:14.8f}" + f" {charge:3d}" * charged)
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A property name without spaces and special characters."""
    return "".join(c if c.isalnum() or c in "_.-" else "_" for c in name)


def sdf_of(molecule: Molecule, name: str, *, bonded: bool = True) -> str:
    """SDF entry: bonds if they can be determined, properties, and the field ``bonds``.

    More than 999 atoms are written as V3000.
    """
    mol = perceive_bonds(molecule) if bonded else None
    if mol is None:
        block = _block_without_bonds(molecule, name)
    else:
        from rdkit.Chem import MolToMolBlock

        mol.SetProp("_Name", name)
        block = MolToMolBlock(mol)
    fields = {key: f"{value:.9g}" for key, value in molecule.properties.items()}
    fields["bonds"] = BONDS[mol is not None]
    return block + "".join(f">  <{key}>\n{text}\n\n" for key, text in fields.items()) + "$$$$\n"


def _block_without_bonds(molecule: Molecule, name: str) -> str:
    """Connection table of atoms only: V2000, or V3000 for more than 999 atoms."""
    count = len(molecule)
    header = f"{name}\n     jitkit          3D\n\n"
    if count > 999:
        lines = ["  0  0  0     0  0            999 V3000", "M  V30 BEGIN CTAB"]
        lines += [f"M  V30 COUNTS {count} 0 0 0 0", "M  V30 BEGIN ATOM"]
        for i, (symbol, at) in enumerate(zip(molecule.symbols, molecule.positions, strict=True)):
            charge = f" CHG={molecule.charges[i]}" if molecule.charges[i] else ""
            lines.append(f"M  V30 {i + 1} {symbol} {at[0]:.6f} {at[1]:.6f} {at[2]:.6f} 0{charge}")
        return header + "\n".join([*lines, "M  V30 END ATOM", "M  V30 END CTAB", "M  END"]) + "\n"
    lines = [f"{count:3d}  0  0  0  0  0  0  0  0  0999 V2000"]
    for symbol, (x, y, z) in zip(molecule.symbols, molecule.positions, strict=True):
        lines.append(f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3} 0" + "  0" * 11)
    charged = [(i + 1, q) for i, q in enumerate(molecule.charges.tolist()) if q]
    for i in range(0, len(charged), 8):
        part = charged[i : i + 8]
        lines.append(f"M  CHG{len(part):3d}" + "".join(f" {a:3d} {q:3d}" for a, q in part))
    return header + "\n".join([*lines, "M  END"]) + "\n"
