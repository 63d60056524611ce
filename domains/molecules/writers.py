"""Molecules into SDF and XYZ."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from jitkit.domains.molecules.chemistry import has_rdkit, perceived
from jitkit.domains.molecules.figures import grid
from jitkit.domains.molecules.molecule import Molecule
from jitkit.utils.console import warn

DRAWN = 36  # molecules in the picture, at most
BONDS = {True: "perceived", False: "none"}


def write(items: Iterable[Molecule], path: Path) -> list[Path]:
    """Write ``samples.sdf``, ``samples.xyz`` and ``grid.png`` into a folder; return them.

    A molecule whose bonds cannot be told stands in the SDF without bonds; its field ``bonds`` says
    ``none``, and a warning how many there are.
    """
    path.mkdir(parents=True, exist_ok=True)
    files = [path / "samples.sdf", path / "samples.xyz"]
    aside = [file.with_suffix(file.suffix + ".partial") for file in files]
    kept, count, without = list[Molecule](), 0, 0
    bonds_are_told = has_rdkit()
    with ExitStack() as stack:
        sdf, xyz = (stack.enter_context(file.open("w", encoding="utf-8")) for file in aside)
        for item in items:
            name = item.name or f"sample-{count:05}"
            made = sdf_of(item, name, bonded=bonds_are_told)
            without += f"\n{BONDS[False]}\n" in made
            sdf.write(made)
            xyz.write(xyz_of(item, name))
            kept += [item] if len(kept) < DRAWN else []
            count += 1
    for before, after in zip(aside, files, strict=True):
        os.replace(before, after)
    if without:
        why = "" if bonds_are_told else ": RDKit is not installed (pip install 'jitkit[molecules]')"
        warn(f"the bonds of {without} of {count} molecules cannot be told{why}; they stand in "
             f"{files[0].name} without")  # fmt: skip
    if kept:
        files.append(path / "grid.png")
        grid(kept).save(files[-1])
    return files


def xyz_of(molecule: Molecule, name: str) -> str:
    """An entry of an extended XYZ file, angstrom; charges are a column where there are any."""
    charged = bool(molecule.charges.any())
    columns = "species:S:1:pos:R:3" + ":formal_charge:I:1" * charged
    told = "".join(f" {_key(k)}={v:.9g}" for k, v in molecule.properties.items())
    lines = [str(len(molecule)), f'Properties={columns} name="{name}"{told} pbc="F F F"']
    atoms = zip(molecule.symbols, molecule.positions, molecule.charges, strict=True)
    for symbol, (x, y, z), charge in atoms:
        lines.append(f"{symbol:2} {x:14.8f} {y:14.8f} {z:14.8f}" + f" {charge:3d}" * charged)
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A property's name as one word."""
    return "".join(c if c.isalnum() or c in "_.-" else "_" for c in name)


def sdf_of(molecule: Molecule, name: str, *, bonded: bool = True) -> str:
    """An entry of an SDF: bonds where they can be told, properties, and whether there are bonds.

    More than 999 atoms are written as V3000.
    """
    made = perceived(molecule) if bonded else None
    if made is None:
        block = _block_without_bonds(molecule, name)
    else:
        from rdkit.Chem import MolToMolBlock

        made.SetProp("_Name", name)
        block = MolToMolBlock(made)
    fields = {key: f"{value:.9g}" for key, value in molecule.properties.items()}
    fields["bonds"] = BONDS[made is not None]
    return block + "".join(f">  <{key}>\n{text}\n\n" for key, text in fields.items()) + "$$$$\n"


def _block_without_bonds(molecule: Molecule, name: str) -> str:
    """A connection table of atoms alone: V2000, or V3000 for more than 999."""
    count = len(molecule)
    head = f"{name}\n     jitkit          3D\n\n"
    if count > 999:
        lines = ["  0  0  0     0  0            999 V3000", "M  V30 BEGIN CTAB"]
        lines += [f"M  V30 COUNTS {count} 0 0 0 0", "M  V30 BEGIN ATOM"]
        for i, (symbol, at) in enumerate(zip(molecule.symbols, molecule.positions, strict=True)):
            charge = f" CHG={molecule.charges[i]}" if molecule.charges[i] else ""
            lines.append(f"M  V30 {i + 1} {symbol} {at[0]:.6f} {at[1]:.6f} {at[2]:.6f} 0{charge}")
        return head + "\n".join([*lines, "M  V30 END ATOM", "M  V30 END CTAB", "M  END"]) + "\n"
    lines = [f"{count:3d}  0  0  0  0  0  0  0  0  0999 V2000"]
    for symbol, (x, y, z) in zip(molecule.symbols, molecule.positions, strict=True):
        lines.append(f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3} 0" + "  0" * 11)
    charged = [(i + 1, q) for i, q in enumerate(molecule.charges.tolist()) if q]
    for i in range(0, len(charged), 8):
        some = charged[i : i + 8]
        lines.append(f"M  CHG{len(some):3d}" + "".join(f" {a:3d} {q:3d}" for a, q in some))
    return head + "\n".join([*lines, "M  END"]) + "\n"
