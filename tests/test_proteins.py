"""Domain proteins: readers, chains, trajectories, output, geometry, metrics, conditions."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import biotite.structure as struc
import gemmi
import numpy as np
import pytest
import torch
from biotite.structure.io.dcd import DCDFile
from biotite.structure.io.pdb import PDBFile
from biotite.structure.io.pdbx import BinaryCIFFile, CIFFile, get_structure, set_structure
from biotite.structure.io.trr import TRRFile
from biotite.structure.io.xtc import XTCFile

from jitkit import testing
from jitkit.data import collate
from jitkit.domains.proteins.adapter import Proteins
from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.ensembles import EnsembleComparison, ensemble_metrics, fluctuations
from jitkit.domains.proteins.readers import chains_in, groups_of, read_atoms, read_chains
from jitkit.domains.proteins.residues import LETTERS
from jitkit.domains.proteins.scores import gyration, neighbour_distances, protein_metrics
from jitkit.domains.proteins.secondary import secondary_structure
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.domains.proteins.torsions import (
    ANGLES,
    LENGTHS,
    bond_angles,
    bond_lengths,
    ramachandran,
)
from jitkit.domains.proteins.trajectories import read_frames, unwrap_chains
from jitkit.errors import BadItem, ConditionError, DataError
from jitkit.utils.paths import resolve_path
from jitkit.utils.rotations import align_to_principal_axes, random_rotation, superpose

DATA = Path(__file__).parent / "data" / "proteins"
FILES = sorted(DATA.glob("*.gz"))
NMR = DATA / "2juy_backbone.pdb.gz"
INHIBITOR = DATA / "5pti.cif.gz"
ATOMS = ("N", "CA", "C", "O")


def section(path: Path | str = DATA, **keys: Any) -> ProteinsSection:
    return ProteinsSection(name="proteins", path=str(path), **keys)


@pytest.fixture(scope="module")
def structures() -> Proteins:
    return Proteins(section(max_length=150, sequence=True, secondary_structure=True, held_out=0.2))


@pytest.fixture(scope="module")
def ensemble() -> Proteins:
    return Proteins(section(NMR, task="ensemble"))


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        return file.readlines()


def written(folder: Path, lines: list[str], name: str = "made.pdb") -> Path:
    path = folder / name
    path.write_text("".join(lines))
    return path


def first_model() -> list[str]:
    """Atoms of the first model of the NMR ensemble."""
    lines = lines_of(NMR)
    return lines[1 : next(i for i, line in enumerate(lines) if line.startswith("ENDMDL"))]


def as_gemmi_reads(path: Path) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """Sequence and positions of N, CA, C, O by chain, read by gemmi."""
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    chains = {}
    for chain in structure[0]:
        polymer = chain.get_polymer()
        letters, positions = "", []
        for residue in polymer.first_conformer():
            letters += gemmi.find_tabulated_residue(residue.name).one_letter_code.upper()
            atoms = [max((a for a in residue if a.name == name), key=lambda a: a.occ, default=None)
                   for name in ATOMS]  # fmt: skip
            positions.append([[np.nan] * 3 if a is None else a.pos.tolist() for a in atoms])
        chains[chain.name] = (letters, np.array(positions))
    return chains


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_chains_equal_those_of_an_independent_reader(path: Path) -> None:
    theirs = as_gemmi_reads(path)
    ours = chains_in(path, 20)
    assert len(ours) == len([s for s, _ in theirs.values() if len(s) >= 20]) > 0
    for chain in ours:
        letters, positions = theirs[chain.name.split(":")[1]]
        assert chain.sequence == letters
        np.testing.assert_allclose(chain.positions, positions, atol=1e-3)


def test_pdb_mmcif_and_binarycif_of_one_entry_give_the_same_chain(tmp_path: Path) -> None:
    atoms = read_atoms(INHIBITOR)
    pdb, cif, bcif = PDBFile(), CIFFile(), BinaryCIFFile()
    pdb.set_structure(atoms)
    pdb.write(tmp_path / "a.pdb")
    for file, name in ((cif, "a.cif"), (bcif, "a.bcif")):
        set_structure(file, atoms)
        file.write(tmp_path / name)
    (wanted,) = chains_in(INHIBITOR, 20)
    for name in ("a.pdb", "a.cif", "a.bcif"):
        (chain,) = chains_in(tmp_path / name, 20)
        assert chain.sequence == wanted.sequence
        np.testing.assert_allclose(chain.positions, wanted.positions, atol=1e-3)


def test_insertion_codes_are_residues_and_skipped_numbers_of_bonded_residues_are_no_gaps() -> None:
    _, chain = chains_in(DATA / "3pwp_backbone.pdb.gz", 20)
    numbers = {line[22:27] for line in lines_of(DATA / "3pwp_backbone.pdb.gz")
               if line[21] == "E" and line.startswith("ATOM")}  # fmt: skip
    assert "116A" in {number.strip() for number in numbers}
    assert len(chain) == len(numbers) == 245
    assert chain.bonded.all()


def with_a_gap(folder: Path) -> Backbone:
    """The chain of the first model without residues 10 to 13."""
    lines = [line for line in first_model() if not 10 <= int(line[22:26]) <= 13]
    (chain,) = chains_in(written(folder, lines), 20)
    return chain


def test_missing_residues_leave_a_gap_of_their_number(tmp_path: Path) -> None:
    chain = with_a_gap(tmp_path)
    steps = np.diff(chain.index)
    assert sorted(steps.tolist())[-2:] == [1, 5] and len(chain) == 24
    assert not chain.bonded[steps == 5].any()


def test_a_modified_residue_has_the_code_of_its_parent() -> None:
    (chain,) = chains_in(NMR, 20)
    names = [line[17:20] for line in first_model() if line[12:16] == " CA "]
    assert "SME" in names and chain.sequence[names.index("SME")] == "M"


def test_the_alternate_location_of_highest_occupancy_is_used(tmp_path: Path) -> None:
    lines = []
    for line in first_model():
        if line[22:26] == "   9":
            lines.append(line[:16] + "1" + line[17:54] + "  0.30" + line[60:])
            moved = f"{float(line[30:38]) + 0.5:8.3f}"
            line = line[:16] + "2" + line[17:30] + moved + line[38:54] + "  0.70" + line[60:]
        lines.append(line)
    (plain,) = chains_in(written(tmp_path, first_model(), "plain.pdb"), 20)
    (chain,) = chains_in(written(tmp_path, lines), 20)
    shift = chain.positions - plain.positions
    assert len(chain) == len(plain)
    np.testing.assert_allclose(shift[8], [[0.5, 0, 0]] * 4, atol=1e-4)
    assert not np.delete(shift, 8, axis=0).any()


@pytest.mark.parametrize("labels", ["AB", "  "])
def test_two_amino_acids_at_one_position_are_one_residue(labels: str, tmp_path: Path) -> None:
    first, second = labels[0], labels[1]
    lines = first_model()
    nine = [i for i, line in enumerate(lines) if line[22:26] == "   9"]
    variant = [lines[i][:16] + second + "ALA" + lines[i][20:] for i in nine]
    for i in nine:
        lines[i] = lines[i][:16] + first + lines[i][17:]
    path = written(tmp_path, lines[: nine[-1] + 1] + variant + lines[nine[-1] + 1 :])
    (chain,) = chains_in(path, 20)
    (plain,) = chains_in(written(tmp_path, first_model(), "plain.pdb"), 20)
    assert chain.sequence == plain.sequence
    assert chain.bonded.all()


def test_an_amino_acid_ligand_is_not_a_residue(tmp_path: Path) -> None:
    ligand = [
        "HETATM" + line[6:22] + " 301" + line[26:30] + f"{float(line[30:38]) + 30:8.3f}" + line[38:]
        for line in first_model()[:4]
    ]
    (chain,) = chains_in(written(tmp_path, first_model() + ligand), 20)
    assert len(chain) == 28


def test_a_second_molecule_with_the_same_label_is_another_chain(tmp_path: Path) -> None:
    again = [line[:30] + f"{float(line[30:38]) + 40:8.3f}" + line[38:] for line in first_model()]
    chains = chains_in(written(tmp_path, first_model() + again), 20)
    assert [chain.name for chain in chains] == ["made.pdb:A", "made.pdb:A/2"]
    np.testing.assert_allclose(np.diff([c.positions for c in chains], axis=0)[0, ..., 0], 40, 1e-4)


def broken(change: Callable[[str], str]) -> list[str]:
    return [change(line) for line in first_model()]


def scaled(line: str, factor: float) -> str:
    return "".join(f"{float(line[i : i + 8]) * factor:8.3f}" for i in (30, 38, 46))


INVALID: dict[str, tuple[list[str], str]] = {
    "empty": ([], "cannot be read"),
    "words": (["nothing\n"], "cannot be read"),
    "torn": ([first_model()[0][:40] + "\n"], "cannot be read"),
    "short": (first_model()[:16], "no chain of at least 20 amino acids; the longest has 4"),
    "water": (
        [line[:17] + "HOH" + line[20:] for line in first_model() if line[12:16] == " O  "],
        "the longest has 0",
    ),
    "nan": (broken(lambda line: line[:30] + "     nan" + line[38:]), "is not finite"),
    "one position": (broken(lambda line: line[:30] + "   0.000" * 3 + line[54:]), "0.00 Å apart"),
    "nanometer": (broken(lambda line: line[:30] + scaled(line, 0.1) + line[54:]), "Å apart"),
    "bohr": (broken(lambda line: line[:30] + scaled(line, 1.89) + line[54:]), "in angstrom"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_file_raises_one_clear_error(name: str, tmp_path: Path) -> None:
    lines, text = INVALID[name]
    path = written(tmp_path, lines)
    with pytest.raises(BadItem, match=text):
        chains_in(path, 20)
    with pytest.raises(DataError, match=f"no protein chains; the first: .*({text})"):
        read_chains(section(path, min_length=20))


def test_a_corrupt_file_in_a_folder_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, first_model(), "good.pdb")
    written(tmp_path, ["torn\n"], "torn.pdb")
    chains, _ = read_chains(section(tmp_path, min_length=20))
    assert [chain.name for chain in chains] == ["good.pdb:A"]
    assert "1 of 2 files are skipped; the first: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere", "no such file or folder; domain.path="),
        ("test_proteins.py", r"are read from \.pdb, .*, not '\.py'"),
        ("data/proteins/README.md", "not '.md'"),
    ],
)
def test_a_path_without_structures_is_refused(path: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        Proteins(section(Path(__file__).parent / path)).items("train")


def test_chains_that_share_a_file_or_a_sequence_are_held_out_together() -> None:
    groups = groups_of([1, 1, 2, 3, 4], ["A", "B", "B", "C", "D"])
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups.tolist())) == 3


def test_inconsistent_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="trajectory belongs to task: ensemble"):
        section(trajectory="a.xtc")
    with pytest.raises(ValueError, match="nothing to condition on"):
        section(task="ensemble", sequence=True)
    with pytest.raises(ValueError, match="min_length 300 is above max_length 256"):
        section(min_length=300)


def test_an_ensemble_passes_the_domain_checks(ensemble: Proteins) -> None:
    testing.check_domain(ensemble, tolerance=2e-5)
    assert ensemble.layout.grid == (28,) and not ensemble.layout.missing


def test_missing_atoms_are_masked_individually(structures: Proteins) -> None:
    (chain,) = chains_in(DATA / "1mr1D.pdb.gz", 20)
    missing = np.isnan(chain.positions)
    assert missing.sum() == 6 and structures.layout.missing
    field = structures.encode(chain)
    assert field.mask is not None
    assert np.array_equal(~field.mask.numpy().T.reshape(-1, 4, 3), missing)
    batch = collate(structures.layout, structures.conditions, [field])
    assert batch.mask is not None and not batch.x[~batch.mask].any()
    again = structures.decode(field)
    wanted = chain.positions - np.nanmean(chain.positions, axis=(0, 1), dtype=np.float64)
    np.testing.assert_allclose(again.positions, wanted, atol=1e-3)


def test_gaps_are_encoded_in_the_coordinates(structures: Proteins, tmp_path: Path) -> None:
    chain = with_a_gap(tmp_path)
    field = structures.encode(chain)
    assert field.coords is not None and field.coords.max() == 27
    assert np.array_equal(structures.decode(field).index, chain.index)


def test_a_segment_has_the_secondary_structure_of_the_whole_chain_in_any_order_of_calls() -> None:
    fresh = Proteins(section(max_length=60, secondary_structure=True, held_out=0.2))
    chain = max(fresh.items("train"), key=len)
    scale = fresh.metadata()["told"]["secondary_structure"]

    def shares(start: int) -> np.ndarray[Any, Any]:
        field = fresh.encode(chain.segment(start, 60))
        return np.asarray(field.cond["secondary_structure"]) * scale["std"] + scale["mean"]

    first = [shares(start) for start in range(0, len(chain) - 60, 7)]
    whole = secondary_structure(chain)
    for number, start in enumerate(range(0, len(chain) - 60, 7)):
        codes = whole[start : start + 60]
        expected = [(codes == "a").mean(), (codes == "b").mean()]
        np.testing.assert_allclose(first[number], expected, atol=1e-5)
        np.testing.assert_array_equal(shares(start), first[number])


def test_alignment_to_principal_axes_preserves_handedness() -> None:
    for seed in range(8):
        points = np.random.default_rng(seed).standard_normal((9, 3)) * (3, 2, 1)
        aligned = align_to_principal_axes(points)
        np.testing.assert_allclose(superpose(points, aligned), aligned, atol=1e-9)


def test_training_rotates_and_crops_structures_but_not_ensembles(
    structures: Proteins, ensemble: Proteins
) -> None:
    chain = max(structures.items("train"), key=len)
    assert len(chain) > 150
    crops = [structures.decode(structures.encode(chain, np.random.default_rng(i))) for i in (0, 1)]
    assert [len(crop) for crop in crops] == [150, 150]
    assert crops[0].sequence != crops[1].sequence
    whole = neighbour_distances(chain)
    for crop in crops:
        start = chain.sequence.index(crop.sequence)
        np.testing.assert_allclose(neighbour_distances(crop), whole[start : start + 149], atol=1e-3)
    short = min(structures.items("train"), key=len)
    rotated = [structures.encode(short, np.random.default_rng(i)).values for i in (0, 1)]
    assert not torch.allclose(rotated[0], rotated[1], atol=0.1)
    frame = ensemble.items("train")[0]
    assert torch.equal(ensemble.encode(frame).values,
                       ensemble.encode(frame, np.random.default_rng(0)).values)  # fmt: skip


def test_encoding_an_ensemble_is_invariant_to_rotation_and_translation(ensemble: Proteins) -> None:
    frame = ensemble.items("train")[3]
    rotation = random_rotation(np.random.default_rng(1))
    moved = Backbone(
        (frame.positions @ rotation.T + 7).astype(np.float32), frame.sequence, frame.index
    )
    before, after = (ensemble.encode(item).values for item in (frame, moved))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def models_of(path: Path) -> Any:
    """All models as biotite reads them from a PDB or mmCIF file."""
    if path.suffix == ".pdb":
        return PDBFile.read(path).get_structure()
    return get_structure(CIFFile.read(path))


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_written_structures_are_read_by_two_libraries(
    kind: str, structures: Proteins, tmp_path: Path
) -> None:
    chains = [*structures.items("train")[:3], with_a_gap(tmp_path)]
    items = [structures.decode(structures.encode(item)) for item in chains]
    files = [path for path in structures.write(items, tmp_path) if path.suffix == f".{kind}"]
    assert len(files) == 4 and not list(tmp_path.rglob("*.partial"))
    for item, path in zip(items, files, strict=True):
        wanted = item.positions[~np.isnan(item.positions).any(axis=2)]
        np.testing.assert_allclose(models_of(path)[0].coord, wanted, atol=1e-3)
        (chain,) = gemmi.read_structure(str(path))[0]
        read = [atom.pos.tolist() for residue in chain for atom in residue]
        np.testing.assert_allclose(read, wanted, atol=1e-3)
        numbers = [residue.seqid.num for residue in chain]
        assert numbers == (item.index - item.index[0] + 1).tolist()
        assert gemmi.one_letter_code([r.name for r in chain]) == item.sequence
        (again,) = chains_in(path, 20)
        assert np.array_equal(again.index, item.index - item.index[0])


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_a_written_ensemble_has_one_model_per_frame(
    kind: str, ensemble: Proteins, tmp_path: Path
) -> None:
    items = ensemble.items("train")[:5]
    (path,) = [p for p in ensemble.write(items, tmp_path) if p.suffix == f".{kind}"]
    wanted = np.stack([item.positions.reshape(-1, 3) for item in items])
    np.testing.assert_allclose(models_of(path).coord, wanted, atol=1e-3)
    models = gemmi.read_structure(str(path))
    read = [[a.pos.tolist() for c in model for r in c for a in r] for model in models]
    np.testing.assert_allclose(read, wanted, atol=1e-3)
    frames = read_frames(section(path, task="ensemble"))
    np.testing.assert_allclose(frames.positions.reshape(wanted.shape), wanted, atol=1e-3)


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of the NMR ensemble as a structure and as trajectories."""
    folder = tmp_path_factory.mktemp("trajectories")
    stack = read_atoms(NMR, model=None)
    for kind, name in ((XTCFile, "a.xtc"), (TRRFile, "a.trr"), (DCDFile, "a.dcd")):
        file = kind()
        file.set_coord(stack.coord)
        file.set_box(np.tile(np.eye(3) * 90.0, (len(stack), 1, 1)))
        file.write(str(folder / name))
    pdb = PDBFile()
    pdb.set_structure(stack[0])
    pdb.write(folder / "top.pdb")
    return folder


@pytest.mark.parametrize("kind", ["xtc", "trr", "dcd"])
def test_trajectory_frames_equal_the_written_conformations(kind: str, trajectories: Path) -> None:
    models = read_frames(section(NMR, task="ensemble"))
    keys = {"task": "ensemble", "trajectory": str(trajectories / f"a.{kind}")}
    frames = read_frames(section(trajectories / "top.pdb", **keys))
    assert len(frames) == 24
    # XTC stores hundredths of an angstrom
    np.testing.assert_allclose(frames.positions, models.positions, atol=0.006)
    third = read_frames(section(trajectories / "top.pdb", stride=3, **keys))
    np.testing.assert_array_equal(third.positions, frames.positions[::3])
    assert third[1].name == f"a.{kind}:3"


def test_a_chain_split_by_a_periodic_box_is_unwrapped() -> None:
    frames = read_frames(section(NMR, task="ensemble")).positions.astype(np.float64)
    box = np.array([[30.0, 0, 0], [0, 28, 0], [5, 9, 26]])  # triclinic, smaller than the chain
    fractions = frames @ np.linalg.inv(box)
    wrapped = (fractions - np.floor(fractions)) @ box
    assert np.abs(np.diff(wrapped[:, :, 1], axis=1)).max() > 10
    whole = unwrap_chains(wrapped.astype(np.float32), np.tile(box, (len(frames), 1, 1)))
    shift = whole - frames
    np.testing.assert_allclose(shift - shift[:, :1, :1], 0, atol=1e-4)


def test_inconsistent_trajectories_are_refused(trajectories: Path, tmp_path: Path) -> None:
    top = trajectories / "top.pdb"
    keys: dict[str, Any] = {"task": "ensemble", "trajectory": str(trajectories / "a.xtc")}
    with pytest.raises(BadItem, match="112 atoms per frame, and the structure .* has 108"):
        read_frames(section(written(tmp_path, first_model()[4:]), **keys))
    with pytest.raises(DataError, match="no such file; domain.trajectory="):
        read_frames(section(top, **keys | {"trajectory": "nowhere.xtc"}))
    with pytest.raises(DataError, match="are read from .dcd, .xtc, .trr"):
        read_frames(section(top, **keys | {"trajectory": str(top)}))
    torn = written(tmp_path, ["torn"], "torn.xtc")
    with pytest.raises(BadItem, match="torn.xtc: cannot be read"):
        read_frames(section(top, **keys | {"trajectory": str(torn)}))
    with pytest.raises(DataError, match="has one model; give domain.trajectory"):
        read_frames(section(top, task="ensemble"))
    stack = read_atoms(NMR, model=None)
    for name, order, text in (
        ("rolled.xtc", np.roll(np.arange(112), 8), "Å apart .* is the order of atoms"),
        ("reversed.xtc", np.arange(112).reshape(-1, 4)[:, ::-1].ravel(), "N-CA bond is 1.23"),
    ):
        file = XTCFile()
        file.set_coord(stack.coord[:, order])
        file.write(str(tmp_path / name))
        with pytest.raises(BadItem, match=text):
            read_frames(section(top, **keys | {"trajectory": str(tmp_path / name)}))


def test_an_ensemble_of_several_chains_needs_a_chain_label() -> None:
    path = DATA / "3pwp_backbone.pdb.gz"
    keys: dict[str, Any] = {"task": "ensemble", "trajectory": "a.xtc"}
    with pytest.raises(BadItem, match=r"domain.chain is not set; .* D \(200\), E \(245\)"):
        read_frames(section(path, **keys))
    with pytest.raises(BadItem, match="domain.chain is 'Z'"):
        read_frames(section(path, chain="Z", **keys))


def test_superposition_undoes_rotation_and_translation_but_not_reflection() -> None:
    rng = np.random.default_rng(0)
    fixed = rng.standard_normal((20, 3)) * (5, 3, 1)
    moved = np.stack([fixed @ random_rotation(rng).T + rng.standard_normal(3) for _ in range(9)])
    np.testing.assert_allclose(superpose(moved, fixed), np.tile(fixed, (9, 1, 1)), atol=1e-12)
    mirrored = superpose(fixed * (1, 1, -1), fixed)
    assert np.sqrt(((mirrored - fixed) ** 2).mean()) > 0.3
    other = rng.standard_normal((20, 3))
    theirs, _ = struc.superimpose(fixed.astype(np.float32), other.astype(np.float32))
    np.testing.assert_allclose(superpose(other, fixed), theirs, atol=1e-4)


def test_torsions_equal_those_of_an_independent_library() -> None:
    (chain,) = chains_in(DATA / "1i8nA.pdb.gz", 20)
    atoms = read_atoms(DATA / "1i8nA.pdb.gz")
    phi, psi, _ = struc.dihedral_backbone(atoms[struc.filter_amino_acids(atoms)])
    np.testing.assert_allclose(ramachandran(chain), np.degrees([phi, psi]), atol=1e-3)


def test_real_chains_are_near_the_ideal_geometry() -> None:
    (chain,) = chains_in(DATA / "1i8nA.pdb.gz", 20)
    for name, values in bond_lengths(chain).items():
        assert np.nanmean(values) == pytest.approx(LENGTHS[name], abs=0.015)
    for name, values in bond_angles(chain).items():
        assert np.nanmean(values) == pytest.approx(ANGLES[name], abs=1.5)


def test_no_geometry_is_computed_over_a_gap(tmp_path: Path) -> None:
    chain = with_a_gap(tmp_path)
    before = int(np.flatnonzero(~chain.bonded)[0])
    phi, psi = ramachandran(chain)
    assert np.isnan(psi[before]) and np.isnan(phi[before + 1])
    assert np.isnan(bond_lengths(chain)["C-N"][before])
    assert np.isnan(bond_angles(chain)["O-C-N"][before])
    assert len(neighbour_distances(chain)) == len(chain) - 2


def rigid_copy(chain: Backbone, matrix: Any) -> Backbone:
    moved = (chain.positions @ np.asarray(matrix).T).astype(np.float32)
    return Backbone(moved, chain.sequence, chain.index)


def test_metrics_distinguish_real_chains_from_noisy_mirrored_and_collapsed_ones() -> None:
    chains = [chains_in(DATA / f"{name}.pdb.gz", 20)[0] for name in ("1i8nA", "2cviA", "2xcjA")]
    rng = np.random.default_rng(0)

    def scores(items: list[Backbone]) -> dict[str, float]:
        return {name: metric(items, chains) for name, metric in protein_metrics().items()}

    real = scores(chains)
    assert real["ramachandran_divergence"] == 0 and real["ca_distance"] > 0.97
    assert real["bond_length_error"] < 0.03 and real["clashes"] < 5
    assert 0.8 < real["radius_of_gyration"] < 1.2
    noise = [0.3 * rng.standard_normal(c.positions.shape) for c in chains]
    noisy = scores([Backbone((c.positions + n).astype(np.float32), c.sequence, c.index)
                    for c, n in zip(chains, noise, strict=True)])  # fmt: skip
    # noise of 0.3 at both ends of a bond
    assert noisy["bond_length_error"] == pytest.approx(0.3 * np.sqrt(2), rel=0.1)
    assert noisy["ca_distance"] < 0.4 and noisy["ramachandran_divergence"] > 0.1
    mirrored = scores([rigid_copy(chain, np.diag([1, 1, -1])) for chain in chains])
    assert mirrored["ramachandran_divergence"] > 0.7
    assert mirrored["bond_angle_error"] == pytest.approx(real["bond_angle_error"], rel=1e-3)
    collapsed = scores([rigid_copy(chain, np.eye(3) / 2) for chain in chains])
    assert collapsed["clashes"] > 100
    assert collapsed["radius_of_gyration"] == pytest.approx(real["radius_of_gyration"] / 2)


def test_the_radius_of_gyration_equals_that_of_biotite() -> None:
    (chain,) = chains_in(DATA / "1i8nA.pdb.gz", 20)
    atoms = read_atoms(DATA / "1i8nA.pdb.gz")
    alphas = atoms[(atoms.atom_name == "CA") & struc.filter_amino_acids(atoms)]
    assert gyration(chain) == pytest.approx(float(struc.gyration_radius(alphas)), rel=1e-5)


def test_ensemble_metrics_are_perfect_for_itself_and_worse_with_noise(ensemble: Proteins) -> None:
    train = ensemble.items("train")
    scores = ensemble_metrics(np.asarray(ensemble.metadata()["reference"]))
    itself = {name: score(train[:], train) for name, score in scores.items()}
    assert itself == pytest.approx({"fluctuation_correlation": 1, "fluctuation_error": 0,
                                    "pair_distance_error": 0, "nearest_tm_score": 1,
                                    "nearest_lddt": 1}, abs=1e-5)  # fmt: skip
    rng = np.random.default_rng(0)
    noisy = [Backbone((f.positions + rng.standard_normal(f.positions.shape)).astype(np.float32),
                      f.sequence, f.index) for f in train]  # fmt: skip
    worse = {name: score(noisy, train) for name, score in scores.items()}
    assert worse["fluctuation_error"] > 1 and worse["pair_distance_error"] > 0.3
    assert worse["nearest_tm_score"] < 0.8 and worse["nearest_lddt"] < 0.9
    held_out = {name: score(ensemble.items("val")[:], train) for name, score in scores.items()}
    assert held_out["nearest_lddt"] > worse["nearest_lddt"]


def test_fluctuations_of_a_known_distribution_are_correct() -> None:
    rng = np.random.default_rng(0)
    widths = np.linspace(0.1, 1, 40)
    mean = rng.standard_normal((40, 3)) * 20
    alphas = mean + widths[:, None] * rng.standard_normal((3000, 40, 3))
    rmsf = fluctuations(alphas)
    np.testing.assert_allclose(rmsf, widths * np.sqrt(3), rtol=0.05)
    assert EnsembleComparison(mean)._pairs[0].shape == (741,)


def test_templates_have_the_requested_length_and_conditions(structures: Proteins) -> None:
    rng = np.random.default_rng(0)
    sequences = [item.sequence for item in structures.items("train")]
    for size in (None, 40, 150):
        field = structures.template(rng, {}, size)
        length = field.values.shape[1]
        letters = "".join((LETTERS + "?")[i] for i in field.cond["sequence"].tolist())
        assert size in (None, length) and any(letters in sequence for sequence in sequences)
    cond = {"length": torch.tensor([50.0]), "secondary_structure": torch.tensor([0.5, 0.1])}
    field = structures.template(rng, cond)
    scale = structures.metadata()["told"]["secondary_structure"]
    shares = field.cond["secondary_structure"].numpy() * scale["std"] + scale["mean"]
    np.testing.assert_allclose(shares, [0.5, 0.1], atol=1e-6)
    assert field.values.shape == (12, 50)
    null = structures.template(rng, {"sequence": None, "secondary_structure": None}, 50)
    assert (null.cond["sequence"] == len(LETTERS)).all()
    assert null.cond["secondary_structure"].isnan().all()


@pytest.mark.parametrize(
    ("cond", "size", "text"),
    [
        ({"length": torch.tensor([50.0])}, 40, "40 and 50 residues are both requested"),
        ({}, 151, "151 residues are out of range: the model was trained on up to 150"),
        ({"length": torch.tensor([40.5])}, None, "40.5 is not a number of residues"),
    ],
)
def test_impossible_lengths_are_refused(
    cond: Any, size: int | None, text: str, structures: Proteins
) -> None:
    with pytest.raises(ConditionError, match=text):
        structures.template(np.random.default_rng(0), cond, size)


def test_an_ensemble_has_a_fixed_length(ensemble: Proteins) -> None:
    with pytest.raises(ConditionError, match="30 residues are requested; this ensemble has 28"):
        ensemble.template(np.random.default_rng(0), {}, 30)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("MDAnalysisTests") is None, reason="its trajectories are 60 MB")
@pytest.mark.parametrize("kind", ["xtc", "trr"])
def test_fluctuations_of_a_simulation_equal_those_of_an_independent_library(kind: str) -> None:
    """RMSF shipped with the package, computed by MDAnalysis without superposition.

    Its frames are not unwrapped, so 20 residues are split off by the periodic box at times.
    """
    data = "package:MDAnalysisTests/data/"
    keys: dict[str, Any] = {"task": "ensemble", "trajectory": f"{data}adk_oplsaa.{kind}"}
    frames = read_frames(section(f"{data}adk_oplsaa.gro", **keys))
    theirs = np.load(resolve_path(f"{data}adk_oplsaa_CA_rmsf.npy"))
    ours, unsplit = fluctuations(frames.positions[:, :, 1]), theirs < 10
    assert unsplit.sum() == 194
    np.testing.assert_allclose(ours[unsplit], theirs[unsplit], atol=0.01)
    assert ours.max() < 5
