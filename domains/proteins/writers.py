"""Write backbones to PDB and mmCIF."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.figures import protein_grid
from jitkit.domains.proteins.residues import ATOMS, THREE

MAX_IN_FIGURE = 36
COLUMNS = (
    "group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id",
    "label_asym_id", "label_entity_id", "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y",
    "Cartn_z", "occupancy", "B_iso_or_equiv", "auth_seq_id", "auth_comp_id", "auth_asym_id",
    "auth_atom_id", "pdbx_PDB_model_num",
)  # fmt: skip


def write_structures(items: Iterable[Backbone], path: Path) -> list[Path]:
    """Write ``pdb/NAME.pdb`` and ``cif/NAME.cif`` of each chain, and ``grid.png``; return them."""
    files, shown = list[Path](), list[Backbone]()
    for count, item in enumerate(items):
        name = f"sample-{count:05}"
        texts = {"pdb": [*_pdb_atoms(item), "END\n"],
                 "cif": [*_cif_head(name), *_cif_atoms(item, 1, 0)]}  # fmt: skip
        for kind, text in texts.items():
            files.append(path / kind / f"{name}.{kind}")
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            aside = files[-1].with_suffix(f".{kind}.partial")
            with aside.open("w", encoding="ascii") as file:
                file.writelines(text)
            os.replace(aside, files[-1])
        shown += [item] if len(shown) < MAX_IN_FIGURE else []
    return files + _write_grid(shown, path)


def write_ensemble(items: Iterable[Backbone], path: Path) -> list[Path]:
    """Write ``samples.pdb`` and ``samples.cif``, one model per frame, and ``grid.png``."""
    path.mkdir(parents=True, exist_ok=True)
    files = [path / "samples.pdb", path / "samples.cif"]
    aside = [file.with_suffix(f"{file.suffix}.partial") for file in files]
    shown: list[Backbone] = []
    with ExitStack() as stack:
        pdb, cif = (stack.enter_context(file.open("w", encoding="ascii")) for file in aside)
        atoms = 0
        cif.writelines(_cif_head("samples"))
        for model, item in enumerate(items, start=1):
            pdb.writelines([f"MODEL     {model:4d}\n", *_pdb_atoms(item), "ENDMDL\n"])
            lines = list(_cif_atoms(item, model, atoms))
            cif.writelines(lines)
            atoms += len(lines)
            shown += [item] if len(shown) < MAX_IN_FIGURE else []
        pdb.write("END\n")
    for before, after in zip(aside, files, strict=True):
        os.replace(before, after)
    return files + _write_grid(shown, path)


def _write_grid(shown: list[Backbone], path: Path) -> list[Path]:
    if not shown:
        return []
    path.mkdir(parents=True, exist_ok=True)
    protein_grid(shown).save(path / "grid.png")
    return [path / "grid.png"]


def _atoms(item: Backbone) -> Iterator[tuple[int, str, str, int, list[float]]]:
    """Serial number, atom name, residue name, residue number and position of present atoms."""
    numbers = (item.index - item.index[0] + 1).tolist()
    present = np.isfinite(item.positions.sum(axis=2))
    count = 0
    for i, (letter, number) in enumerate(zip(item.sequence, numbers, strict=True)):
        for j, atom in enumerate(ATOMS):
            if present[i, j]:
                count += 1
                yield count, atom, THREE[letter], number, item.positions[i, j].tolist()


def _pdb_atoms(item: Backbone) -> Iterator[str]:
    count, residue, number = 0, "UNK", 0
    for count, atom, residue, number, (x, y, z) in _atoms(item):
        yield (f"ATOM  {count % 100_000:5d}  {atom:<3} {residue} A{number % 10_000:4d}    "
               f"{x:8.3f}{y:8.3f}{z:8.3f}{1:6.2f}{0:6.2f}          {atom[0]:>2}\n")  # fmt: skip
    yield f"TER   {(count + 1) % 100_000:5d}      {residue} A{number % 10_000:4d}\n"


def _cif_head(name: str) -> Iterator[str]:
    yield f"data_{name}\n#\n_entry.id {name}\n#\n_entity.id 1\n_entity.type polymer\n#\n"
    yield "_entity_poly.entity_id 1\n_entity_poly.type 'polypeptide(L)'\n#\n"
    yield "_struct_asym.id A\n_struct_asym.entity_id 1\n#\n"
    yield "loop_\n" + "".join(f"_atom_site.{column}\n" for column in COLUMNS)


def _cif_atoms(item: Backbone, model: int, offset: int) -> Iterator[str]:
    for count, atom, residue, number, (x, y, z) in _atoms(item):
        element, columns = atom[0], f"{x:.4f} {y:.4f} {z:.4f} 1.00 0.00"
        yield (f"ATOM {offset + count} {element} {atom} . {residue} A 1 {number} ? {columns} "
               f"{number} {residue} A {atom} {model}\n")  # fmt: skip
